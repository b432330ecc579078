"""How many training workers a run has: as many as asked for, fewer while nodes are lost."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import ray
import ray.train
from ray._private.state import state  # what Ray Train itself asks; its public functions tell neither

from raymae.config import ComputeConfig
from raymae.training.batches.windows import rank_slots
from raymae.training.guards.deadline import Deadline
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Workforce:
    """The workers that a run may have; picklable, because the first of them asks whether there could be more."""

    compute: ComputeConfig
    most: int
    slots: int
    """What has to be shared out equally: the greatest common divisor of the stages' micro-batches a step."""
    use_gpu: bool
    grows_from: float = 0.0
    """Unix time before which it asks for no more workers."""

    @property
    def fewest(self) -> int:
        """The number below which the run waits."""
        return min(self.compute.min_workers, self.most)

    @property
    def counts(self) -> list[int]:
        """The numbers of workers that the run may have, the largest first: all shares are equal."""
        return [count for count in range(self.most, self.fewest - 1, -1) if self.slots % count == 0]

    def now(self) -> int:
        """How many the cluster as it stands has room for, 0 where they are too few."""
        nodes = alive()
        return next((count for count in self.counts if has_room(self.compute, self.use_gpu, count, nodes)), 0)

    def can_grow(self, workers: int) -> bool:
        """Whether more could take part than so many, in room that nobody uses."""
        more = self.now() - workers
        return more > 0 and time.time() >= self.grows_from and self.is_idle(more)

    def is_idle(self, more: int) -> bool:
        """Whether nobody uses what so many more workers would take.

        Of GPU workers their GPUs: the CPUs, which what feeds this run may hold, are shared out anew with the workers.
        """
        if self.use_gpu:
            return sum(node.get("GPU", 0) for node in idle()) >= more
        cpus = reserved_cpus(self.compute, self.now(), alive())
        return sum(int(node.get("CPU", 0) / cpus + 1e-6) for node in idle()) >= more

    def below(self, workers: int) -> Workforce:
        """The same with fewer workers than so many, which found no room although there should be some."""
        fewer = next((count for count in self.counts if count < workers), workers)
        return replace(self, most=fewer)

    def wait(self, deadline: Deadline) -> int:
        """How many there are, as soon as they are enough; 0 where the deadline comes first."""
        told = False
        while not (count := self.now()) and not deadline.is_over():
            if not told:
                log.warning("waiting for nodes: compute.min_workers = %d workers have no room", self.fewest)
                told = True
            time.sleep(POLL_SECONDS)
        return count

    def scaling(self, workers: int) -> ray.train.ScalingConfig:
        """What Ray Train is told of them."""
        resources = {"CPU": reserved_cpus(self.compute, workers, alive())} | ({"GPU": 1.0} if self.use_gpu else {})
        return ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=self.use_gpu,
            resources_per_worker=resources,
            # GPUs of a machine are close to each other; its cores are what workers on CPUs would have to share
            placement_strategy="PACK" if self.use_gpu else "SPREAD",
        )


def workforce(specs: Sequence[StageSpec]) -> Workforce:
    """The workers of some stages: on GPUs where the cluster has them, on CPUs where it has none.

    Raises ValueError where `compute.num_workers` are more than the cluster has room for, or no equal shares. One worker
    a GPU, the default, leaves GPUs unused that make no equal shares, and says so.
    """
    compute = specs[0].config.compute
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = gpus > 0 if compute.use_gpu is None else compute.use_gpu
    if use_gpu and not gpus:
        raise ValueError("compute.use_gpu is set and the cluster has no GPU")
    workers = compute.num_workers or (gpus if use_gpu else 1)
    kind = "GPU" if use_gpu else "CPU"
    if not has_room(compute, use_gpu, workers, alive(going={})):  # what has notice is replaced, or done without
        raise ValueError(
            f"compute.num_workers = {workers} needs more {kind}s than the cluster's "
            f"{ray.cluster_resources().get(kind, 0):g}, or larger nodes (compute.cpus_per_worker = "
            f"{compute.cpus_per_worker:g})"
        )
    crew = Workforce(compute, workers, math.gcd(*(spec.order().slots for spec in specs)), use_gpu)
    if compute.num_workers:
        for spec in specs:
            rank_slots(spec.order(), 0, workers)
    if not crew.counts:
        raise ValueError(
            f"compute.min_workers = {compute.min_workers}: {crew.slots} micro-batches make a step, which no number of "
            f"workers from {crew.fewest} to {workers} shares out equally"
        )
    if not compute.num_workers and crew.now() < workers:
        log.warning("%d of %d GPUs can be used: %d micro-batches make a step", crew.now(), workers, crew.slots)
    return crew


def alive(going: Container[str] | None = None) -> list[dict[str, float]]:
    """The resources of each node of the cluster as it stands, without those that are about to be taken away."""
    going = draining() if going is None else going
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]


def idle() -> list[dict[str, float]]:
    """What nobody uses of each of these nodes."""
    going = draining()
    return [free for node, free in state.available_resources_per_node().items() if node not in going]


def draining() -> dict[str, int]:
    """The nodes that are about to be taken away, on which Ray starts nothing any more; with their ends."""
    return state.get_draining_nodes()  # type: ignore[no-any-return]


def has_room(compute: ComputeConfig, use_gpu: bool, workers: int, nodes: Sequence[dict[str, float]]) -> bool:
    """Whether some nodes have room for so many workers, each of which lies on one of them."""
    cpus, found = reserved_cpus(compute, workers, nodes) if use_gpu else compute.cpus_per_worker, 0
    for node in nodes:
        most = int(node.get("CPU", 0) / cpus + 1e-6)
        found += min(most, int(node.get("GPU", 0))) if use_gpu else most
    return found >= workers


def reserved_cpus(compute: ComputeConfig, workers: int, nodes: Sequence[dict[str, float]]) -> float:
    """CPUs reserved for each training worker: as configured, but half a CPU a worker is left to those who feed it.

    Where training reserved all of them, no reader could ever start.
    """
    share = sum(node.get("CPU", 0) for node in nodes) / workers
    return max(0.01, min(compute.cpus_per_worker, share - 0.5))


def torch_threads(compute: ComputeConfig, workers: int, use_gpu: bool) -> int:
    """Threads of torch per worker: its node's cores, shared by the workers that share the node."""
    nodes = [node for node in alive() if node.get("GPU" if use_gpu else "CPU", 0) > 0]
    cores = max((node.get("CPU", 1) for node in nodes), default=1)
    return compute.torch_threads or max(1, int(cores // -(-workers // max(1, len(nodes)))))
