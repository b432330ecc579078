"""A Ray of the benchmark's own, with a small object store."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OBJECT_STORE_MB = 80
"""Ray's least is 75 MB."""


@contextmanager
def own_ray(cpus: int, object_store_mb: int = OBJECT_STORE_MB) -> Iterator[float]:
    """Run a local Ray for the block, set up as for a job; gives the seconds that its start took."""
    import ray

    from raymae.config import ComputeConfig
    from raymae.launch import start_ray

    started = time.perf_counter()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # it listens on loopback; a token would be written to the user's home
    folder = Path("/tmp") / f"raymae-{os.getpid()}"  # short: Ray's socket names have a limit of 107 characters
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=object_store_mb * 1_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        _system_config={"worker_niceness": 0},  # by default Ray's workers give way to others, and so to the rival
    )
    try:
        start_ray(ComputeConfig())
        yield time.perf_counter() - started
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
