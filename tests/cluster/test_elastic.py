"""The number of training workers on a cluster that loses and gains nodes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from hypothesis import given
from hypothesis import strategies as st

from raymae.cluster import elastic, train
from raymae.cluster.elastic import Workforce
from raymae.cluster.ray_private import WorkerGroupStartupTimeoutError
from raymae.cluster.resources import nodes as nodes_module
from raymae.cluster.resources.room import has_room
from raymae.cluster.stages import Between
from raymae.config import ComputeConfig
from raymae.storage.folder import Folder
from raymae.storage.lease import Fence
from raymae.training.guards.deadline import FOREVER, Deadline


def workforce_of(monkeypatch: pytest.MonkeyPatch, room: list[float], most: int, fewest: int) -> Workforce:
    """A workforce on a cluster with room for `room` workers, one number for each look at it."""

    def alive() -> list[dict[str, float]]:
        return [{"CPU": 1000.0, "GPU": room.pop(0) if len(room) > 1 else room[0]}]

    monkeypatch.setattr(elastic, "alive", alive)
    monkeypatch.setattr(elastic, "POLL_SECONDS", 0.0)
    return Workforce(ComputeConfig(min_workers=fewest), most, use_gpu=True)


@given(room=st.floats(0, 40), most=st.integers(1, 32), fewest=st.integers(1, 32))
def test_as_many_workers_as_there_is_room_for(room: float, most: int, fewest: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        count = workforce_of(monkeypatch, [room], most, fewest).now()
    fitting = min(most, int(room))
    assert count == (fitting if fitting >= min(fewest, most) else 0)


def test_a_run_waits_while_there_are_too_few(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert workforce_of(monkeypatch, [1, 1, 2, 3, 4], most=8, fewest=3).wait(FOREVER) == 3
    assert caplog.text.count("waiting for nodes: compute.min_workers = 3 workers have no room") == 1
    assert workforce_of(monkeypatch, [1], most=8, fewest=3).wait(Deadline(1.0, 0.0)) == 0


def test_a_cluster_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "alive", lambda leaving: [{"CPU": 8.0}])
    monkeypatch.setattr(elastic, "starts_here", lambda address: True)
    spec: Any = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig(use_gpu=True)))
    with pytest.raises(ValueError, match="use_gpu is set and the cluster has no GPU"):
        elastic.plan_workforce([spec])


def test_a_worker_is_on_a_single_node() -> None:
    nodes, compute = [{"CPU": 3.0}] * 3, ComputeConfig(cpus_per_worker=2)
    assert has_room(compute, False, 3, nodes)
    assert not has_room(compute, False, 4, nodes)
    assert has_room(ComputeConfig(), True, 4, [{"CPU": 2.0, "GPU": 4.0}])
    assert not has_room(ComputeConfig(cpus_per_worker=8), True, 2, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 64.0}])


def test_fewer_workers_if_the_room_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = workforce_of(monkeypatch, [8], most=8, fewest=2)
    assert found.now() == 8
    assert found.below(8).now() == 7
    assert found.below(4).now() == 3
    assert found.below(3).below(2).now() == found.below(-5).now() == 2, "fewer than min_workers"


def test_a_run_grows_into_idle_resources_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = workforce_of(monkeypatch, [8], most=8, fewest=2)
    free = [{"GPU": 1.0}, {"CPU": 64.0}, {"GPU": 3.0, "CPU": 1.0}]
    monkeypatch.setattr(elastic, "idle", lambda: free)
    assert found.can_grow(4)
    assert not found.can_grow(8)
    assert not replace(found, grows_from=time.time() + 60).can_grow(4)
    free[:] = [{"CPU": 64.0}]
    assert not found.can_grow(4)


def test_a_cpu_worker_needs_room_on_a_single_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "alive", lambda *_: [{"CPU": 16.0}] * 2)
    found, free = Workforce(ComputeConfig(cpus_per_worker=2), 8, use_gpu=False), [{"CPU": 1.0}] * 8
    monkeypatch.setattr(elastic, "idle", lambda: free)
    assert not found.can_grow(4)  # spread over nodes
    free[:] = [{"CPU": 5.0}, {"CPU": 4.5}]
    assert found.can_grow(4)


def test_draining_nodes_are_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": name != "dead", "NodeID": name, "Resources": {"GPU": 1.0}} for name in ("a", "b", "dead")]
    free = {"a": {"GPU": 1.0}, "b": {"GPU": 1.0}}
    monkeypatch.setattr(nodes_module.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(nodes_module.state, "available_resources_per_node", lambda: free)
    for going, left in (({}, 2), ({"b": 0}, 1), ({"b": 5, "a": 7}, 0)):
        monkeypatch.setattr(nodes_module.state, "get_draining_nodes", lambda found=going: found)
        assert len(nodes_module.alive()) == len(nodes_module.idle()) == len(nodes_module.staying()) == left


def test_fewer_workers_are_tried_until_they_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found, artifact, tried = workforce_of(monkeypatch, [8], most=8, fewest=1), SimpleNamespace(done=False), []
    artifact.is_done = lambda: artifact.done

    def fit(specs: Any, storage: Any, deadline: Any, workforce: Workforce, workers: int) -> None:
        tried.append((workers, workforce.grows_from - time.time()))
        if workers > 2:
            raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(workers))
        artifact.done = True

    monkeypatch.setattr(train, "plan_workforce", lambda specs: found)
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "latest_step", lambda artifact: 1)
    train.train([SimpleNamespace(artifact=artifact, slots=8)], Folder("/nowhere"))  # type: ignore[list-item]
    assert [workers for workers, _ in tried] == [8, 7, 5, 1]
    minutes = [pause / 60 for _, pause in tried[1:]]
    assert minutes == pytest.approx([times * found.compute.wait_minutes for times in (2, 4, 8)], rel=0.05)


def test_a_run_that_waits_for_room_finally_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    found, artifact, tried = workforce_of(monkeypatch, [2], most=2, fewest=1), SimpleNamespace(done=False), []
    artifact.is_done = lambda: artifact.done
    clock = [1e9]

    def fit(specs: Any, storage: Any, deadline: Any, workforce: Workforce, workers: int) -> None:
        tried.append((workers, workforce.grows_from))
        clock[0] += 60 * workforce.compute.wait_minutes
        if len(tried) <= 2000:
            raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(workers))
        artifact.done = len(tried) == 2003
        if len(tried) == 2002:
            clock[0] = workforce.grows_from  # it stopped in order to grow

    monkeypatch.setattr(train.time, "time", lambda: clock[0])
    monkeypatch.setattr(train, "plan_workforce", lambda specs: found)
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "latest_step", lambda artifact: 1)
    train.train([SimpleNamespace(artifact=artifact, slots=8)], Folder("/nowhere"))  # type: ignore[list-item]
    assert [workers for workers, _ in tried[-3:]] == [1, 1, 2], "it grew too early, or never"
    assert tried[-1][1] - 1e9 <= 60 * found.compute.wait_minutes * (2000 + 16)


def test_a_draining_node_is_no_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "NodeID": name, "Resources": {"CPU": 8.0, "GPU": 2.0}} for name in "ab"]
    monkeypatch.setattr(nodes_module.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(nodes_module.state, "get_draining_nodes", lambda: {"b": 0})
    monkeypatch.setattr(elastic, "starts_here", lambda address: True)
    spec: Any = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig()))
    assert elastic.plan_workforce([spec]).start(FOREVER) == 2


@given(slots=st.lists(st.integers(1, 12), min_size=1, max_size=8), most=st.integers(1, 12))
def test_neighbouring_stages_that_can_use_equally_many_workers_share_them(slots: list[int], most: int) -> None:
    specs: list[Any] = [stage(f"stage{number}", count) for number, count in enumerate(slots)]
    workforce = Workforce(ComputeConfig(min_workers=2), most, use_gpu=False, grows_from=5.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        lines: list[str] = []
        monkeypatch.setattr(elastic.log, "warning", lambda text, *values: lines.append(text % values))
        found = elastic.by_workers(specs, workforce)
    assert [spec for some, _ in found for spec in some] == specs
    for some, workers in found:
        assert {min(most, spec.slots) for spec in some} == {workers.most}
        assert workers == replace(workforce, most=workers.most)
    assert all(one.most != other.most for (_, one), (_, other) in itertools.pairwise(found))
    assert [line.split()[0] for line in lines] == [spec.name for spec in specs if spec.slots < most]


def test_what_stands_between_two_trainings_is_run_by_the_group_of_the_first() -> None:
    between = Between(name="labels", artifact=Folder("a"), fence=Fence(Folder("a"), ""), run=lambda device: None)
    first, second = stage("one", 4), stage("two", 2)
    found = elastic.by_workers([first, between, second], Workforce(ComputeConfig(), 4, use_gpu=False))
    assert [some for some, _ in found] == [[first, between], [second]]


def stage(name: str, slots: int) -> Any:
    """A stage whose steps have so many mixing groups of 8 clips."""
    train = SimpleNamespace(global_batch_size=8 * slots)
    return SimpleNamespace(name=name, slots=slots, group_size=8, train=train)


def test_a_stage_with_fewer_groups_than_workers_says_so(caplog: pytest.LogCaptureFixture) -> None:
    workforce = Workforce(ComputeConfig(), 6, use_gpu=True)
    found = elastic.by_workers([stage("pretrain", 64), stage("cnn", 4)], workforce)
    assert [workers.most for _, workers in found] == [6, 4]
    assert caplog.messages == [
        "cnn uses 4 of 6 workers: a step of 32 clips has 4 mixing groups of 8 clips, which aren't divided"
    ]


def test_the_workers_of_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus = {"CPU": 16.0, "GPU": 4.0}
    monkeypatch.setattr(elastic, "alive", lambda: [{"CPU": 0.0}, with_gpus, with_gpus, {"CPU": 64.0}])
    assert elastic.torch_threads(ComputeConfig(), 8, use_gpu=True) == 4
    assert elastic.torch_threads(ComputeConfig(), 3, use_gpu=False) == 64
    assert elastic.torch_threads(ComputeConfig(), 4, use_gpu=False) == 32
    assert elastic.torch_threads(ComputeConfig(torch_threads=5), 4, use_gpu=False) == 5
