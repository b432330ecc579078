"""How many workers, CPUs and GPUs a trial and a shared stage of a sweep have, and how many run side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune import PlacementGroupFactory

from raymae.cluster.connect import starts_here
from raymae.cluster.ray_private import autoscaler_report
from raymae.cluster.resources.demand import await_room, fitting, holds
from raymae.cluster.resources.gpus import wants_gpu
from raymae.cluster.resources.nodes import alive, staying
from raymae.config import ComputeConfig, SweepConfig
from raymae.training.guards.deadline import FOREVER, Deadline

WORKERS, AVOIDED = "workers", "avoided"
"""In the configuration of a trial of Tune: its workers, and the node on which it failed before."""
DRIVER_MEMORY = 512 * 2**20
"""Bytes of memory reserved for the process of a trial whose workers are others, which reserves nothing else."""
WAITING = 16
"""Most trials that wait for nodes that an autoscaler may start."""


@dataclass(frozen=True)
class Sizes:
    """The resources of a sweep's trials."""

    workers: int
    """Of each trial."""
    cpus: float
    gpus: float
    """Of each worker."""
    room: int
    """Workers for which there is room in all, at the sweep's start."""
    grows: bool
    """Whether an autoscaler adds nodes for trials that wait."""

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one worker."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def of_stage(self, side_by_side: int) -> int:
        """Workers of one of so many shared stages that can run now: on whole GPUs their share of these."""
        if self.gpus != 1:
            return self.workers
        return max(self.workers, self.room // max(1, side_by_side))

    def most(self, sweep: SweepConfig) -> int | None:
        """Most trials at a time; None where Tune's own placement says."""
        if sweep.max_concurrent or self.workers == 1:
            return sweep.max_concurrent
        fits = max(1, self.room // self.workers)
        return max(fits, WAITING) if self.grows else fits

    def request(self, config: Mapping[str, Any]) -> PlacementGroupFactory:
        """What Tune reserves for a trial of a configuration: for a trial tried once more, on another node, if one has
        the room."""
        asked: dict[str, float] = self.bundle if config.get(WORKERS, 1) == 1 else {"memory": float(DRIVER_MEMORY)}
        avoided = config.get(AVOIDED)
        others = staying() - {avoided}
        if avoided and any(holds(node["Resources"], asked) for node in ray.nodes() if node["NodeID"] in others):
            return PlacementGroupFactory([asked], bundle_label_selector=[{"ray.io/node-id": f"!{avoided}"}])
        return PlacementGroupFactory([asked])


def sizes_of(sweep: SweepConfig, compute: ComputeConfig, deadline: Deadline = FOREVER) -> Sizes:
    """The sizes of a sweep's trials; waits until the machines of one have joined, where machines may join.

    ValueError where there is no room for one, and won't be.
    """
    gpus = float(wants_gpu(compute)) if sweep.gpus_per_worker is None else sweep.gpus_per_worker
    sizes = Sizes(sweep.workers_per_trial, sweep.cpus_per_worker, gpus, 0, False)
    grows = False
    if not starts_here(compute.address):
        what = "trials" if sizes.workers == 1 else f"workers of a trial (sweep.workers_per_trial = {sizes.workers})"
        await_room(what, sizes.bundle, compute, deadline, sizes.workers)
        grows = autoscaler_report() is not None
    room = fitting(sizes.bundle, alive())
    if room < sizes.workers:
        nodes = alive()
        most = max(nodes, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)))
        raise ValueError(
            f"a trial of sweep.workers_per_trial = {sizes.workers} with sweep.cpus_per_worker = {sizes.cpus:g} and "
            f"sweep.gpus_per_worker = {sizes.gpus:g} would wait for ever: the cluster has room for {room} such workers "
            f"(its largest machine: {most.get('CPU', 0):g} CPUs, {most.get('GPU', 0):g} GPUs)"
        )
    return Sizes(sizes.workers, sizes.cpus, sizes.gpus, room, grows)
