"""Where a stage that reads classifiers reads them: over the cluster, or in the driver."""

from __future__ import annotations

from raymae.cluster.connect import starts_here
from raymae.cluster.infer import Bar, ClusterReader
from raymae.cluster.resources.gpus import wants_gpu
from raymae.pipeline.evaluate import Reader
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.training.guards.deadline import Deadline

FEW_CLIPS = 2048
"""Clips of a store that are read in the driver, if it has the machine to itself."""


def choose_reader(plan: Plan, bar: Bar, deadline: Deadline) -> Reader:
    """A reader of the plan's store; `bar` opens a progress bar of so many clips.

    On a Ray of this job alone and its CPUs, there would be one actor for the whole machine: where there is little to
    read, the driver does it, because the actor's start would take longer.
    """
    compute = plan.config.compute
    if len(plan.store) <= FEW_CLIPS and starts_here(compute.address) and not wants_gpu(compute, fallback=True):
        return InProcess(plan, deadline=deadline)
    return ClusterReader(plan.store, compute, bar, deadline)
