"""Size the group of training workers: as many as configured, fewer while nodes are lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import ray
import ray.train

from raymae.cluster.ray_private import state
from raymae.cluster.room import has_room, reserved_cpus, uses_gpu, workers_of
from raymae.config import ComputeConfig
from raymae.training.guards.deadline import Deadline
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Workforce:
    """The numbers of workers that a run may have; picklable, because rank 0 asks whether there is room for more."""

    compute: ComputeConfig
    most: int
    use_gpu: bool
    grows_from: float = 0.0
    """Unix time before which it doesn't ask for more workers."""

    @property
    def fewest(self) -> int:
        """The number of workers below which the run waits."""
        return min(self.compute.min_workers, self.most)

    @property
    def counts(self) -> list[int]:
        """The numbers of workers that the run may have, the largest first."""
        return list(range(self.most, self.fewest - 1, -1))

    def now(self) -> int:
        """The number of workers that the cluster has room for now; 0 if they are too few."""
        nodes = alive()
        return next((count for count in self.counts if has_room(self.compute, self.use_gpu, count, nodes)), 0)

    def can_grow(self, workers: int) -> bool:
        """Whether idle resources have room for more than `workers`."""
        more = self.now() - workers
        return more > 0 and time.time() >= self.grows_from and self.is_idle(more)

    def is_idle(self, more: int) -> bool:
        """Whether the resources of so many more workers are idle.

        For GPU workers only GPUs count: this run's own data workers may hold the CPUs, which are then divided anew.
        """
        if self.use_gpu:
            return sum(node.get("GPU", 0) for node in idle()) >= more
        cpus = reserved_cpus(self.compute, self.now(), alive())
        return sum(int(node.get("CPU", 0) / cpus + 1e-6) for node in idle()) >= more

    def below(self, workers: int) -> Workforce:
        """A workforce of fewer than `workers`, which found no room although there should have been some; not of fewer
        than may be."""
        return replace(self, most=max(self.fewest, workers - 1))

    def wait(self, deadline: Deadline) -> int:
        """Wait until there is room for enough workers; their number, or 0 if the deadline comes first."""
        warned = False
        while not (count := self.now()) and not deadline.is_over():
            if not warned:
                log.warning("waiting for nodes: compute.min_workers = %d workers have no room", self.fewest)
                warned = True
            time.sleep(POLL_SECONDS)
        return count

    def scaling(self, workers: int) -> ray.train.ScalingConfig:
        """Ray Train's configuration of so many workers."""
        resources = {"CPU": reserved_cpus(self.compute, workers, alive())} | ({"GPU": 1.0} if self.use_gpu else {})
        return ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=self.use_gpu,
            resources_per_worker=resources,
            # GPU workers communicate faster within a machine; CPU workers would share its cores
            placement_strategy="PACK" if self.use_gpu else "SPREAD",
        )


def plan_workforce(specs: Sequence[StageSpec]) -> Workforce:
    """The most workers that any stage may have: on GPUs, one each by default, if the cluster has some, else on CPUs.

    Raises ValueError if `compute.num_workers` are more than the cluster has room for.
    """
    compute = specs[0].config.compute
    workers, use_gpu = workers_of(compute, alive(leaving={}))  # draining nodes may be replaced
    return Workforce(compute, workers, use_gpu)


def by_workers(specs: Sequence[StageSpec], workforce: Workforce) -> list[tuple[list[StageSpec], Workforce]]:
    """Consecutive stages that can use equally many workers, and these; each such group of stages shares its workers.

    A stage has at most as many workers as a step has mixing groups; one with fewer than there are says so.
    """
    found: list[tuple[list[StageSpec], Workforce]] = []
    for spec in specs:
        most = min(workforce.most, spec.slots)
        if most < workforce.most:
            log.warning(
                "%s uses %d of %d workers: a step of %d clips has %d mixing groups of %d clips, which aren't divided",
                spec.name,
                most,
                workforce.most,
                spec.train.global_batch_size,
                spec.slots,
                spec.group_size,
            )
        if found and found[-1][1].most == most:
            found[-1][0].append(spec)
        else:
            found.append(([spec], replace(workforce, most=most)))
    return found


def check_gpus(compute: ComputeConfig) -> None:
    """ValueError if `compute.use_gpu` is set and the cluster that was joined has no GPU."""
    uses_gpu(compute, ray.cluster_resources().get("GPU", 0))


def alive(leaving: Container[str] | None = None) -> list[dict[str, float]]:
    """The resources of each node that is alive now, without those that are about to be taken away."""
    leaving = draining() if leaving is None else leaving
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def idle() -> list[dict[str, float]]:
    """The idle resources of each of these nodes."""
    leaving = draining()
    return [free for node, free in state.available_resources_per_node().items() if node not in leaving]


def draining() -> dict[str, int]:
    """The nodes that are about to be taken away, on which Ray starts nothing more, with the times of their ends."""
    return state.get_draining_nodes()  # type: ignore[no-any-return]


def torch_threads(compute: ComputeConfig, workers: int, use_gpu: bool) -> int:
    """Threads of torch per worker: a node's cores, divided by the workers on it."""
    nodes = [node for node in alive() if node.get("GPU" if use_gpu else "CPU", 0) > 0]
    cores = max((node.get("CPU", 1) for node in nodes), default=1)
    return compute.torch_threads or max(1, int(cores // -(-workers // max(1, len(nodes)))))
