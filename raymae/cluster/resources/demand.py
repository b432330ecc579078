"""Ask the cluster for room, and wait for it: with an autoscaler, that is how its nodes come.

Room is asked for by placement groups, one for each worker or actor: those that wait are what an autoscaler starts nodes
for, those that have their room keep it. `ray.autoscaler.sdk.request_resources` would be simpler, but it has one value
for the whole cluster, which Ray Train and Ray Data set, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group

from raymae.cluster.ray_private import AutoscalerReport, autoscaler_report
from raymae.cluster.resources.nodes import alive, staying
from raymae.config import ComputeConfig
from raymae.training.guards.deadline import Deadline

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
TELL_SECONDS = 30.0
"""Between two lines that say what is waited for."""
VERDICT_SECONDS = 15.0
"""How long the autoscaler, which looks every 5 s, has to say what it can't start."""


@dataclass(frozen=True)
class Demand:
    """Room that is asked for, so many times; picklable: rank 0 asks, and Ray Train's controller withdraws it."""

    name: str
    """Begins the names of its placement groups; no other demand of the job may have it."""
    bundle: dict[str, float]
    """The resources of one worker."""

    def ask(self, count: int) -> None:
        """Ask for room for so many workers in all: more than before, or fewer."""
        groups = self._groups()
        for group in groups[count:]:
            remove_placement_group(get_placement_group(group["name"]))
        for number in range(count - len(groups)):
            placement_group([self.bundle], name=f"{self.name}-{time.time_ns():x}-{number}")

    def ready(self) -> int:
        """How many workers have room, on nodes that stay."""
        nodes = staying()
        return sum(all(node in nodes for node in group["bundles_to_node_id"].values()) for group in self._groups(True))

    def unplaceable(self, report: AutoscalerReport) -> int:
        """How many workers have no room on any node that the autoscaler may start."""
        return sum(group["placement_group_id"] in report.unplaceable for group in self._groups(False))

    def withdraw(self) -> None:
        """Give back the room and ask for no more."""
        self.ask(0)

    def _groups(self, made: bool | None = None) -> list[dict[str, Any]]:
        """The placement groups, those with room first; with `made`, only those that have it, or only the others."""
        states = {"CREATED": True, "PENDING": False, "PREPARED": False, "RESCHEDULING": False}
        own = [
            group
            for group in placement_group_table().values()
            if group["name"].startswith(f"{self.name}-") and made in (None, states.get(group["state"]))
        ]
        return sorted((group for group in own if group["state"] in states), key=lambda one: not states[one["state"]])

    @contextmanager
    def asked(self, count: int) -> Iterator[None]:
        """Ask for the block."""
        self.ask(count)
        try:
            yield
        finally:
            self.withdraw()


@dataclass(frozen=True, kw_only=True)
class Wait:
    """How long to wait for what is asked for."""

    wanted: int
    """All of it: enough to go on at once."""
    fewest: int
    """Enough to go on after `seconds`."""
    seconds: float
    gives_up: bool
    """Whether waiting ends with an error where nothing will come."""
    what: str
    """What has the room, in the plural: training workers, say."""

    def run(self, demand: Demand, deadline: Deadline) -> int:
        """Wait; returns how many have room, 0 if the deadline comes first.

        ValueError where no node can hold one, or where the cluster has no autoscaler, if there are still too few at
        the end.
        """
        started = time.monotonic()
        tell_at = started + POLL_SECONDS
        with demand.asked(self.wanted):
            while True:
                ready, report = demand.ready(), autoscaler_report()
                if ready >= self.wanted:
                    return ready
                waited = time.monotonic() - started
                hopeless = demand.unplaceable(report) if report and waited >= VERDICT_SECONDS else 0
                if ready >= self.fewest and (waited >= self.seconds or ready + hopeless >= self.wanted):
                    log.warning("%d of %d %s have room (%s each)", ready, self.wanted, self.what, shown(demand.bundle))
                    return ready
                if self.gives_up:
                    self._check(demand, ready, hopeless, waited, report)
                if deadline.is_over():
                    return 0
                if time.monotonic() >= tell_at:
                    log.info("%s", self.line(demand, ready, waited, hopeless, report))
                    tell_at = time.monotonic() + TELL_SECONDS
                time.sleep(POLL_SECONDS)

    def _check(self, demand: Demand, ready: int, hopeless: int, waited: float, report: AutoscalerReport | None) -> None:
        """Raise the error where nothing will come."""
        if report and hopeless == self.wanted and not any(holds(node, demand.bundle) for node in alive()):
            raise ValueError(
                f"no node of the cluster, nor any that its autoscaler may start, can hold {self.what} of "
                f"{shown(demand.bundle)} each: ask for less, or add a type of nodes that can"
            )
        if not report and waited >= self.seconds:
            raise ValueError(
                f"{ready} of {self.wanted} {self.what} have room ({shown(demand.bundle)} each) after "
                f"compute.wait_minutes = {self.seconds / 60:g}, and {self.fewest} are needed; the cluster has no "
                "autoscaler that would start more nodes"
            )

    def line(self, demand: Demand, ready: int, waited: float, hopeless: int, report: AutoscalerReport | None) -> str:
        """What is waited for, in a line."""
        text = f"waiting for room for {self.wanted - ready} of {self.wanted} {self.what} ({shown(demand.bundle)} each)"
        parts = [f"{waited:.0f} s so far"]
        if report:
            starting = ", ".join(f"{count} of type {name}" for name, count in report.starting.items())
            parts.append(f"nodes being started: {starting or 'none'}")
            refused = {name: reason for name, reason in report.failed.items() if name not in report.starting}
            parts += [f"type {name} couldn't be started{reason and ': '}{reason}" for name, reason in refused.items()]
        if hopeless:
            parts.append(f"the autoscaler may start no node for {hopeless} of them now")
        if waited < self.seconds:
            parts.append(f"with {self.fewest} or more it goes on after {self.seconds:.0f} s")
        elif ready < self.fewest:
            parts.append(f"at least {self.fewest} have to have room (compute.min_workers)")
        return f"{text}: {'; '.join(parts)}"


def shown(bundle: dict[str, float]) -> str:
    """Resources in words: 1 GPU, 8 CPUs."""
    return ", ".join(f"{count:g} {kind}{'' if count == 1 else 's'}" for kind, count in bundle.items()) or "nothing"


def holds(node: dict[str, float], bundle: dict[str, float]) -> bool:
    """Whether a node with nothing else on it can hold the resources."""
    return all(node.get(kind, 0) >= count for kind, count in bundle.items())


def fitting(bundle: dict[str, float], nodes: Sequence[dict[str, float]]) -> int:
    """How many times nodes with nothing else on them can hold the resources."""
    return sum(
        min(int(node.get(kind, 0) / count + 1e-6) for kind, count in bundle.items() if count)
        for node in nodes
        if holds(node, bundle)
    )


def await_room(what: str, bundle: dict[str, float], compute: ComputeConfig, deadline: Deadline, count: int = 1) -> None:
    """Wait until nodes that can hold `count` of some actors or tasks have joined; says so where that takes long.

    Raises what `Wait.run` raises, TimeIsUpError if the deadline comes first.
    """
    if fitting(bundle, alive()) >= count:
        return
    wait = Wait(wanted=count, fewest=count, seconds=60 * compute.wait_minutes, gives_up=True, what=what)
    if not wait.run(Demand(f"raymae-{time.time_ns():x}", bundle), deadline):
        raise deadline.error(f"while no node has room for {what}")
