"""Where a stage that reads classifiers reads them: over the cluster, or in one process."""

from __future__ import annotations

from collections.abc import Callable

from raymae.cluster.infer import Bar, ClusterReader
from raymae.cluster.resources.room import alone_on_cpus
from raymae.pipeline.evaluate import Reader
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.training.guards.deadline import Deadline

FEW_CLIPS = 2048
"""Clips of a store that one process reads, if the job has the machine to itself."""


def reads_here(plan: Plan) -> bool:
    """Whether the plan's store is read by one process, without an actor of Ray."""
    return alone_on_cpus(plan.config.compute) and len(plan.store) <= FEW_CLIPS


def choose_reader(plan: Plan, start_ray: Callable[[], None], bar: Bar, deadline: Deadline) -> Reader:
    """A reader of the plan's store; `bar` opens a progress bar of so many clips."""
    if reads_here(plan):
        return InProcess(plan, deadline=deadline)
    start_ray()
    return ClusterReader(plan.store, plan.config.compute, bar, deadline)
