"""Whether to use GPUs: as asked for, and as the cluster can have them, not as they happen to stand."""

from __future__ import annotations

import logging
import time
from functools import cache

from raymae.cluster.connect import starts_here
from raymae.cluster.ray_private import autoscaler_report
from raymae.cluster.resources.demand import POLL_SECONDS, VERDICT_SECONDS, Demand
from raymae.cluster.resources.nodes import alive
from raymae.cluster.resources.room import uses_gpu
from raymae.config import ComputeConfig

log = logging.getLogger(__name__)


def wants_gpu(compute: ComputeConfig, fallback: bool = False) -> bool:
    """Whether to use GPUs, as `compute.use_gpu` says; by default if the cluster has some, or its autoscaler starts one
    when it is asked.

    A cluster without autoscaler whose GPU nodes haven't joined looks like one without GPUs: there `compute.use_gpu`
    has to ask for them, and whatever needs one waits.

    Args:
        fallback: on a Ray of this job alone, use CPUs if `compute.use_gpu` is set and there is no GPU, which is a
            ValueError otherwise.
    """
    gpus = sum(node.get("GPU", 0) for node in alive(leaving={}))
    if gpus or starts_here(compute.address):
        return uses_gpu(compute, gpus, fallback)
    if compute.use_gpu is not None:
        return compute.use_gpu
    return starts_gpus(compute.address)


@cache
def starts_gpus(address: str | None) -> bool:
    """Whether the autoscaler of the cluster starts nodes with GPUs: known only once it has been asked for one."""
    if not autoscaler_report():
        log.warning(
            "the cluster has no GPU: CPUs are used (--compute.use-gpu True waits for GPU nodes that haven't joined)"
        )
        return False
    demand = Demand(f"raymae-{time.time_ns():x}", {"GPU": 1.0})
    until = time.monotonic() + VERDICT_SECONDS
    with demand.asked(1):
        while time.monotonic() < until and not demand.ready():
            time.sleep(POLL_SECONDS)
            report = autoscaler_report()
            if report and demand.unplaceable(report):
                log.warning("the cluster has no GPU, and its autoscaler has no type of nodes with one: CPUs are used")
                return False
    log.info("the cluster can start nodes with GPUs, so these are used (--compute.use-gpu False uses CPUs)")
    return True
