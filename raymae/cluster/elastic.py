"""Size the group of training workers: as many as configured, fewer while nodes are missing."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray.train

from raymae.cluster.connect import starts_here
from raymae.cluster.resources.demand import Demand, Wait
from raymae.cluster.resources.gpus import wants_gpu
from raymae.cluster.resources.nodes import alive, idle
from raymae.cluster.resources.room import reserved_cpus, room_for, workers_of
from raymae.cluster.stages import Between
from raymae.config import ComputeConfig
from raymae.training.guards.deadline import Deadline
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
SETTLE_SECONDS = 10.0
"""How long the room of the last group of workers, which has ended, may take to be free again."""


@dataclass(frozen=True)
class Workforce:
    """The numbers of workers that a run may have; picklable, because rank 0 asks whether there is room for more."""

    compute: ComputeConfig
    most: int
    use_gpu: bool
    label: str = ""
    """Names the training in Ray's dashboard; empty: the stage's key."""
    grows_from: float = 0.0
    """Unix time before which it doesn't ask for more workers."""
    demand: Demand | None = None
    """Asks for room, where nodes may join; None where Ray was started for this job alone, on this machine."""

    @property
    def is_alone(self) -> bool:
        """Whether Ray was started for this run alone."""
        return self.demand is None

    @property
    def fewest(self) -> int:
        """The number of workers below which the run waits."""
        return min(self.compute.min_workers, self.most)

    @property
    def asked(self) -> int:
        """The number of workers for which nodes are asked for."""
        return min(self.most, self.compute.num_workers or self.fewest)

    @property
    def wanted(self) -> int:
        """The number of workers that would start now if nothing else took the room: on nodes that run, or are asked
        for."""
        return max(self.asked, room_for(self.compute, self.use_gpu, alive(), self.most))

    @property
    def known(self) -> int:
        """The number of workers that may be, as far as is known now."""
        return self.most if self.most < sys.maxsize else self.wanted

    def now(self) -> int:
        """The number of workers that the cluster has room for now; 0 if they are too few."""
        count = room_for(self.compute, self.use_gpu, alive(), self.most)
        return count if count >= self.fewest else 0

    def can_grow(self, workers: int) -> bool:
        """Whether there is room for more than `workers`: what was asked for has come, or idle resources."""
        if workers >= self.most or time.time() < self.grows_from:
            return False
        self.ask_for_more(workers)
        return bool(self.demand and self.demand.ready()) or (self.now() > workers and self.is_idle())

    def is_idle(self) -> bool:
        """Whether the resources of one worker are idle.

        For GPU workers only GPUs count: this run's own data workers may hold the CPUs, which are then divided anew.
        """
        if self.use_gpu:
            return sum(node.get("GPU", 0) for node in idle()) >= 1
        cpus = reserved_cpus(self.compute, self.now(), alive())
        return any(node.get("CPU", 0) / cpus + 1e-6 >= 1 for node in idle())

    def ask_for_more(self, workers: int) -> None:
        """Ask for the workers that are missing beside so many, where nodes may join."""
        if self.demand and time.time() >= self.grows_from:
            self.demand.ask(max(0, self.asked - workers))

    def ask_for_none(self) -> None:
        """Ask for no more workers, and give back the room that has come of it."""
        if self.demand:
            self.demand.withdraw()

    def below(self, workers: int) -> Workforce:
        """A workforce of fewer than `workers`, which found no room although there should have been some; not of fewer
        than may be."""
        return replace(self, most=max(self.fewest, workers - 1))

    def start(self, deadline: Deadline) -> int:
        """Wait until there is room for all workers, or after `compute.wait_minutes` for enough; their number, or 0 if
        the deadline comes first.

        ValueError if no node can hold a worker, or if too few come to a cluster without autoscaler.
        """
        return self._wait(deadline, 60 * self.compute.wait_minutes, gives_up=True)

    def wait(self, deadline: Deadline) -> int:
        """Wait, after a group of workers has ended, until there is room for enough; their number, or 0 if the deadline
        comes first."""
        return self._wait(deadline, SETTLE_SECONDS, gives_up=False)

    def _wait(self, deadline: Deadline, seconds: float, gives_up: bool) -> int:
        if not self.demand:
            return self._wait_here(deadline)
        wait = Wait(wanted=self.wanted, fewest=self.fewest, seconds=seconds, gives_up=gives_up, what="training workers")
        return wait.run(self.demand, deadline)

    def _wait_here(self, deadline: Deadline) -> int:
        warned = False
        while not (count := self.now()) and not deadline.is_over():
            if not warned:
                log.warning("waiting for nodes: compute.min_workers = %d workers have no room", self.fewest)
                warned = True
            time.sleep(POLL_SECONDS)
        return count

    def threads(self, workers: int) -> int:
        """Threads of torch in each of so many workers."""
        return torch_threads(self.compute, workers, self.use_gpu)

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


@dataclass(frozen=True)
class FixedWorkforce(Workforce):
    """Exactly so many workers, for one of several trainings side by side. Ray Train asks for their room at once, which
    the autoscaler sees, and gets all of it or none: groups that wait hold nothing, so they can't block each other."""

    cpus: float = 1.0
    """CPUs of each worker."""

    @property
    def is_alone(self) -> bool:
        """No: there are others."""
        return False

    @property
    def fewest(self) -> int:
        """All."""
        return self.most

    def can_grow(self, workers: int) -> bool:
        """No."""
        return False

    def start(self, deadline: Deadline) -> int:
        """All: Ray Train waits for their room; 0 after the deadline."""
        return 0 if deadline.is_over() else self.most

    def wait(self, deadline: Deadline) -> int:
        """As `start`."""
        return self.start(deadline)

    def threads(self, workers: int) -> int:
        """Threads of torch in each worker: its CPUs."""
        return self.compute.torch_threads or max(1, int(self.cpus))

    def scaling(self, workers: int) -> ray.train.ScalingConfig:
        """Ray Train's configuration of so many workers, on as few nodes as have room."""
        return ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=self.use_gpu,
            resources_per_worker={"CPU": self.cpus} | ({"GPU": 1.0} if self.use_gpu else {}),
            placement_strategy="PACK",
        )


def plan_workforce(specs: Sequence[StageSpec]) -> Workforce:
    """The most workers that any stage may have: as many as configured, by default one per GPU, or else one on CPUs.

    Where Ray was started for this job alone, ValueError if this machine has no room for them. Where nodes may join,
    these are asked for, and the default is one per GPU as GPUs come.
    """
    compute = specs[0].config.compute
    if starts_here(compute.address):
        workers, use_gpu = workers_of(compute, alive(leaving={}))  # draining nodes may be replaced
        return Workforce(compute, workers, use_gpu)
    use_gpu = wants_gpu(compute)
    most = compute.num_workers or (sys.maxsize if use_gpu else 1)
    # beside a GPU, a worker takes what CPUs there are (`reserved_cpus`)
    bundle = {"GPU": 1.0} if use_gpu else {"CPU": compute.cpus_per_worker}
    return Workforce(compute, most, use_gpu, demand=Demand(f"raymae-{time.time_ns():x}", bundle))


def by_workers(
    specs: Sequence[StageSpec | Between], workforce: Workforce
) -> list[tuple[list[StageSpec | Between], Workforce]]:
    """Consecutive stages that can use equally many workers, and these; each such group of stages shares its workers.

    A stage has at most as many workers as a step has mixing groups; one with fewer than there are says so.
    """
    found: list[tuple[list[StageSpec | Between], Workforce]] = []
    known = workforce.known
    for spec in specs:
        if isinstance(spec, Between):
            found[-1][0].append(spec)
            continue
        most = min(workforce.most, spec.slots)
        if most < known:
            log.warning(
                "%s uses %d of %d workers: a step of %d clips has %d mixing groups of %d clips, which aren't divided",
                spec.name,
                most,
                known,
                spec.train.global_batch_size,
                spec.slots,
                spec.group_size,
            )
        if found and found[-1][1].most == most:
            found[-1][0].append(spec)
        else:
            found.append(([spec], replace(workforce, most=most)))
    return found


def torch_threads(compute: ComputeConfig, workers: int, use_gpu: bool) -> int:
    """Threads of torch per worker: a node's cores, divided by the workers on it."""
    nodes = [node for node in alive() if node.get("GPU" if use_gpu else "CPU", 0) > 0]
    cores = max((node.get("CPU", 1) for node in nodes), default=1)
    return compute.torch_threads or max(1, int(cores // -(-workers // max(1, len(nodes)))))
