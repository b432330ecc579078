"""What a run asks the cluster for, how long it waits for it, and what it says meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from raymae.cluster import elastic
from raymae.cluster.elastic import Workforce, plan_workforce
from raymae.cluster.ray_private import AutoscalerReport
from raymae.cluster.resources import demand as module
from raymae.cluster.resources import gpus
from raymae.cluster.resources.demand import Demand, Wait, await_room
from raymae.cluster.resources.nodes import idle
from raymae.config import ComputeConfig
from raymae.training.guards.deadline import FOREVER, Deadline, TimeIsUpError

WAIT = Wait(wanted=4, fewest=2, seconds=300, gives_up=True, what="training workers")


class Cloud:
    """A cluster whose autoscaler starts a node for a worker every `pace` seconds, `most` at most, on a clock of its
    own."""

    def __init__(self, pace: float = 20.0, most: int = 100, stands: bool = True) -> None:
        self.pace, self.most, self.time, self.asked = pace, most, 0.0, 0
        self.nodes: list[dict[str, float]] = [{"GPU": 1.0}] if stands else [{"CPU": 8.0}]
        self.autoscales = True
        self.reason = ""

    def ask(self, count: int) -> None:
        self.asked = count

    def ready(self) -> int:
        return min(self.asked, self.most, int(self.time / self.pace))

    def report(self) -> AutoscalerReport | None:
        if not self.autoscales:
            return None
        hopeless = [f"{number}" for number in range(self.asked - self.most)]
        starting = {"gpu": min(self.asked, self.most) - self.ready()}
        return AutoscalerReport(starting, {"spot": self.reason} if self.reason else {}, frozenset(hopeless))

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The cloud, with what is asked for taken back at the end."""
    found = Cloud()
    monkeypatch.setattr(Demand, "ask", lambda self, count: found.ask(count))
    monkeypatch.setattr(Demand, "ready", lambda self: found.ready())
    monkeypatch.setattr(Demand, "unplaceable", lambda self, report: len(report.unplaceable))
    monkeypatch.setattr(module, "autoscaler_report", lambda: found.report())
    monkeypatch.setattr(gpus, "autoscaler_report", lambda: found.report())
    monkeypatch.setattr(gpus, "starts_here", lambda address: False)
    monkeypatch.setattr(elastic, "starts_here", lambda address: False)
    for one in (module, gpus, elastic):
        monkeypatch.setattr(one, "alive", lambda leaving=None: found.nodes)
    clock = SimpleNamespace(monotonic=lambda: found.time, time_ns=lambda: 1, time=lambda: 0.0, sleep=found.sleep)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(gpus, "time", clock)
    gpus.starts_gpus.cache_clear()
    yield found
    gpus.starts_gpus.cache_clear()
    assert not found.asked, "what was asked for wasn't taken back"


GPU = Demand("test", {"GPU": 1.0})


def test_a_run_starts_at_once_when_all_workers_have_room(cloud: Cloud) -> None:
    assert WAIT.run(GPU, FOREVER) == 4
    assert cloud.time == pytest.approx(80, abs=2)


def test_after_the_patience_enough_workers_start(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.pace = 110.0
    assert WAIT.run(GPU, FOREVER) == 2
    assert cloud.time == pytest.approx(300, abs=2)
    caplog.set_level("INFO", logger="raymae")
    caplog.clear()
    cloud.reason = "InsufficientCapacity"
    cloud.time = 0
    assert WAIT.run(GPU, FOREVER) == 2
    lines = [line for line in caplog.messages if line.startswith("waiting")]
    assert lines[0].startswith("waiting for room for 4 of 4 training workers (1 GPU each): 1 s so far; nodes being")
    assert "started: 4 of type gpu" in lines[0]
    assert "type spot couldn't be started: InsufficientCapacity" in lines[0]
    assert lines[-1].startswith("waiting for room for 2 of 4")
    assert len(lines) == pytest.approx(10, abs=1)


def test_no_more_is_waited_for_than_can_come(cloud: Cloud) -> None:
    cloud.most, cloud.pace = 3, 1.0
    assert WAIT.run(GPU, FOREVER) == 3
    assert cloud.time < 30


def test_too_few_workers_wait_as_long_as_the_autoscaler_tries(cloud: Cloud) -> None:
    cloud.pace = 1000.0
    assert WAIT.run(GPU, FOREVER) == 2
    assert cloud.time == pytest.approx(2000, abs=2)


def test_the_deadline_ends_the_wait(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.pace = float("inf")
    monkeypatch.setattr(Deadline, "is_over", lambda self: cloud.time > 700)
    assert WAIT.run(GPU, Deadline(1.0, 0.0)) == 0
    cloud.nodes, cloud.time = [], 0
    with pytest.raises(TimeIsUpError, match="while no node has room for trials"):
        await_room("trials", {"GPU": 1.0}, ComputeConfig(), Deadline(1.0, 0.0))


def test_a_worker_that_no_node_can_hold_is_an_error(cloud: Cloud) -> None:
    cloud.most, cloud.nodes = 0, [{"CPU": 8.0}]
    with pytest.raises(ValueError, match="nor any that its autoscaler may start, can hold training workers of 1 GPU"):
        WAIT.run(GPU, FOREVER)
    assert cloud.time < 30


def test_a_standing_node_that_others_use_is_waited_for(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.most = 0
    monkeypatch.setattr(Deadline, "is_over", lambda self: cloud.time > 700)
    assert WAIT.run(GPU, FOREVER) == 0


def test_without_an_autoscaler_too_few_are_an_error_in_the_end(cloud: Cloud) -> None:
    cloud.autoscales, cloud.pace = False, 200.0
    with pytest.raises(ValueError, match=r"1 of 4 training workers have room .1 GPU each. after compute"):
        WAIT.run(GPU, FOREVER)
    cloud.time, cloud.pace = 0, 100.0
    assert WAIT.run(GPU, FOREVER) == 3
    cloud.time, cloud.pace = 0, 1000.0
    assert replace(WAIT, gives_up=False, seconds=10).run(GPU, FOREVER) == 2, "a run that has begun waits on"


def compute_of(**settings: Any) -> Any:
    """A stage with these settings."""
    return [SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig(**settings)))]


def test_gpus_or_cpus_follow_from_what_the_cluster_can_have(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="raymae")
    cloud.nodes = [{"CPU": 8.0}]
    assert plan_workforce(compute_of()).use_gpu, "GPU nodes can be started"
    gpus.starts_gpus.cache_clear()
    assert not plan_workforce(compute_of(use_gpu=False)).use_gpu
    cloud.most = 0
    assert not plan_workforce(compute_of()).use_gpu
    assert "its autoscaler has no type of nodes with one: CPUs are used" in caplog.text
    assert plan_workforce(compute_of(use_gpu=True)).use_gpu, "the wait tells that no node can hold one"
    gpus.starts_gpus.cache_clear()
    cloud.autoscales = False
    assert not plan_workforce(compute_of()).use_gpu
    assert "--compute.use-gpu True waits for GPU nodes" in caplog.text
    assert plan_workforce(compute_of(use_gpu=True)).use_gpu, "GPU nodes may yet join"


def test_as_many_workers_as_gpus_come(cloud: Cloud) -> None:
    cloud.nodes = [{"GPU": 8.0, "CPU": 64.0}]
    found = plan_workforce(compute_of())
    assert (found.asked, found.wanted, found.known) == (1, 8, 8)
    cloud.nodes *= 4
    assert found.wanted == 32, "nodes that have joined are used"
    found = plan_workforce(compute_of(num_workers=64, min_workers=4))
    assert (found.asked, found.wanted, found.fewest) == (64, 64, 4)
    found = plan_workforce(compute_of(use_gpu=False, cpus_per_worker=2))
    assert (found.asked, found.wanted, found.demand and found.demand.bundle) == (1, 1, {"CPU": 2})


def test_a_run_grows_into_what_it_has_asked_for(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "idle", lambda: [])
    found = Workforce(ComputeConfig(num_workers=4), 4, use_gpu=True, demand=GPU)
    assert not found.can_grow(2)
    assert cloud.asked == 2, "the missing workers are asked for"
    cloud.time = 25
    assert found.can_grow(2)
    assert not replace(found, grows_from=1e12).can_grow(2)
    found.ask_for_none()


@pytest.mark.ray
def test_room_is_asked_for_and_given_back(ray_cluster: None) -> None:
    demand = Demand("test-demand", {"CPU": 0.75})
    wait = Wait(wanted=2, fewest=1, seconds=60, gives_up=True, what="workers")
    assert wait.run(demand, FOREVER) == 2
    demand.ask(3)
    assert demand.ready() <= 2
    other = Demand("test-demand-other", {"CPU": 1000.0})
    with other.asked(1):
        assert other.ready() == 0
        demand.ask(1)
        assert demand.ready() <= 1
    demand.withdraw()
    module.time.sleep(1)
    assert demand.ready() == 0
    assert sum(node.get("CPU", 0) for node in idle()) == 2
