"""A local Ray for benchmarks, with a small object store."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECT_STORE_MB = 80
"""Object store of a node, MB; Ray's minimum is 75."""


@contextmanager
def own_ray(cpus: int, object_store_mb: int = OBJECT_STORE_MB, nodes: int = 1) -> Iterator[float]:
    """Run a local Ray, set up as for a job, for the duration of the block; yields its start-up time in seconds.

    Args:
        cpus: CPUs per node.
        object_store_mb: object store per node, MB.
        nodes: number of nodes, each with its own daemons and workers; the first one is the head.
    """
    import ray
    from ray.cluster_utils import Cluster

    from raymae.cluster.connect import start_ray
    from raymae.cluster.ray_private import SYSTEM_CONFIG, TEMP_DIR
    from raymae.config import ComputeConfig

    started = time.perf_counter()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only; a token would be written to the user's home
    folder = Path("/tmp") / f"raymae-{os.getpid()}"  # short: Ray's socket names have a limit of 107 characters
    size: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": object_store_mb * 1_000_000}
    # Ray's workers have a raised niceness by default and would yield the CPU to the baseline
    first = size | {"include_dashboard": False, SYSTEM_CONFIG: {"worker_niceness": 0}}
    place: dict[str, Any] = {TEMP_DIR: str(folder)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    cluster = None
    if nodes == 1:
        ray.init(address="local", **first, **place, **quiet)
    else:
        cluster = Cluster(initialize_head=True, head_node_args={"temp_dir": str(folder), **first})
        for _ in range(nodes - 1):
            cluster.add_node(**size)
        ray.init(address=cluster.address, **quiet)
    try:
        start_ray(ComputeConfig())
        yield time.perf_counter() - started
    finally:
        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
