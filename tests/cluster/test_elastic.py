"""How many training workers take part, whatever the cluster has lost."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from hypothesis import given
from hypothesis import strategies as st
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raymae.cluster import elastic, train
from raymae.cluster.elastic import Workforce
from raymae.config import ComputeConfig
from raymae.storage.folder import Folder
from raymae.training.guards.deadline import FOREVER, Deadline


def crew(monkeypatch: pytest.MonkeyPatch, room: list[float], most: int, slots: int, fewest: int) -> Workforce:
    """A crew on a cluster that has room for `room` workers, one number for each look at it."""

    def alive() -> list[dict[str, float]]:
        return [{"CPU": 1000.0, "GPU": room.pop(0) if len(room) > 1 else room[0]}]

    monkeypatch.setattr(elastic, "alive", alive)
    monkeypatch.setattr(elastic, "POLL_SECONDS", 0.0)
    return Workforce(ComputeConfig(min_workers=fewest), most, slots, use_gpu=True)


@given(room=st.floats(0, 40), most=st.integers(1, 32), slots=st.integers(1, 32), fewest=st.integers(1, 32))
def test_as_many_as_make_equal_shares(room: float, most: int, slots: int, fewest: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = crew(monkeypatch, [room], most, slots, fewest)
        count = found.now()
    fitting = [number for number in range(1, min(most, int(room)) + 1) if slots % number == 0]
    assert count == (fitting[-1] if fitting and fitting[-1] >= min(fewest, most) else 0)


def test_too_few_are_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert crew(monkeypatch, [1, 1, 3, 4], most=8, slots=8, fewest=3).wait(FOREVER) == 4
    assert caplog.text.count("waiting for nodes: compute.min_workers = 3 workers have no room") == 1
    assert crew(monkeypatch, [1], most=8, slots=8, fewest=3).wait(Deadline(1.0, 0.0)) == 0


def test_a_cluster_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic.ray, "cluster_resources", lambda: {"CPU": 8.0})
    spec: Any = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig(use_gpu=True)))
    with pytest.raises(ValueError, match="use_gpu is set and the cluster has no GPU"):
        elastic.workforce([spec])


def test_a_worker_lies_on_one_node() -> None:
    pieces, compute = [{"CPU": 3.0}] * 3, ComputeConfig(cpus_per_worker=2)
    assert elastic.has_room(compute, False, 3, pieces)
    assert not elastic.has_room(compute, False, 4, pieces)
    assert elastic.has_room(ComputeConfig(), True, 4, [{"CPU": 2.0, "GPU": 4.0}])
    assert not elastic.has_room(ComputeConfig(cpus_per_worker=8), True, 2, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 64.0}])


def test_room_that_others_have_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = crew(monkeypatch, [8], most=8, slots=8, fewest=2)
    assert found.now() == 8
    assert found.below(8).now() == 4
    assert found.below(8).below(4).below(2).now() == 2, "fewer than min_workers"


def test_only_room_that_nobody_uses_is_grown_into(monkeypatch: pytest.MonkeyPatch) -> None:
    found = crew(monkeypatch, [8], most=8, slots=8, fewest=2)
    free = [{"GPU": 1.0}, {"CPU": 64.0}, {"GPU": 3.0, "CPU": 1.0}]
    monkeypatch.setattr(elastic, "idle", lambda: free)
    assert found.can_grow(4)
    assert not found.can_grow(8)
    assert not replace(found, grows_from=time.time() + 60).can_grow(4)
    free.pop()
    assert not found.can_grow(4)


def test_of_cpus_a_worker_lies_on_one_node_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "alive", lambda *_: [{"CPU": 16.0}] * 2)
    found, free = Workforce(ComputeConfig(cpus_per_worker=2), 8, 8, use_gpu=False), [{"CPU": 1.0}] * 8
    monkeypatch.setattr(elastic, "idle", lambda: free)
    assert not found.can_grow(4)  # in pieces
    free[:] = [{"CPU": 5.0}, {"CPU": 4.5}]
    assert found.can_grow(4)


def test_what_is_about_to_be_taken_away_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": name != "dead", "NodeID": name, "Resources": {"GPU": 1.0}} for name in ("a", "b", "dead")]
    free = {"a": {"GPU": 1.0}, "b": {"GPU": 1.0}}
    monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(elastic.state, "available_resources_per_node", lambda: free)
    for going, left in (({}, 2), ({"b": 0}, 1), ({"b": 5, "a": 7}, 0)):
        monkeypatch.setattr(elastic.state, "get_draining_nodes", lambda found=going: found)
        assert len(elastic.alive()) == len(elastic.idle()) == left


def test_fewer_and_fewer_workers_are_started_until_they_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found, artifact, tried = crew(monkeypatch, [8], most=8, slots=8, fewest=1), SimpleNamespace(done=False), []
    artifact.is_done = lambda: artifact.done

    def fit(specs: Any, storage: Any, deadline: Any, crew: Workforce, workers: int) -> None:
        tried.append((workers, crew.grows_from - time.time()))
        if workers > 2:
            raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(workers))
        artifact.done = True

    monkeypatch.setattr(train, "workforce", lambda specs: found)
    monkeypatch.setattr(train, "fit", fit)
    train.train([SimpleNamespace(artifact=artifact)], Folder("/nowhere"))  # type: ignore[list-item]
    assert [workers for workers, _ in tried] == [8, 4, 2]
    minutes = [pause / 60 for _, pause in tried[1:]]
    assert minutes == pytest.approx([2 * found.compute.wait_minutes, 4 * found.compute.wait_minutes], rel=0.05)


def test_a_run_that_waits_for_room_grows_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found, artifact, tried = crew(monkeypatch, [2], most=2, slots=2, fewest=1), SimpleNamespace(done=False), []
    artifact.is_done = lambda: artifact.done
    clock = [1e9]

    def fit(specs: Any, storage: Any, deadline: Any, crew: Workforce, workers: int) -> None:
        tried.append((workers, crew.grows_from))
        clock[0] += 60 * crew.compute.wait_minutes
        if len(tried) <= 2000:
            raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(workers))
        artifact.done = len(tried) == 2003
        if len(tried) == 2002:
            clock[0] = crew.grows_from  # it stopped to grow

    monkeypatch.setattr(train.time, "time", lambda: clock[0])
    monkeypatch.setattr(train, "workforce", lambda specs: found)
    monkeypatch.setattr(train, "fit", fit)
    train.train([SimpleNamespace(artifact=artifact)], Folder("/nowhere"))  # type: ignore[list-item]
    assert [workers for workers, _ in tried[-3:]] == [1, 1, 2], "it grew before its time, or never"
    assert tried[-1][1] - 1e9 <= 60 * found.compute.wait_minutes * (2000 + 16)


def test_a_node_with_notice_is_no_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "NodeID": name, "Resources": {"CPU": 8.0, "GPU": 2.0}} for name in "ab"]
    monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(elastic.ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0})
    monkeypatch.setattr(elastic.state, "get_draining_nodes", lambda: {"b": 0})
    spec: Any = SimpleNamespace(config=SimpleNamespace(compute=ComputeConfig()), order=lambda: SimpleNamespace(slots=4))
    assert elastic.workforce([spec]).wait(FOREVER) == 2


def test_cores_are_shared_by_the_workers_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus = {"CPU": 16.0, "GPU": 4.0}
    monkeypatch.setattr(elastic, "alive", lambda: [{"CPU": 0.0}, with_gpus, with_gpus, {"CPU": 64.0}])
    assert elastic.torch_threads(ComputeConfig(), 8, use_gpu=True) == 4
    assert elastic.torch_threads(ComputeConfig(), 3, use_gpu=False) == 64
    assert elastic.torch_threads(ComputeConfig(), 4, use_gpu=False) == 32
    assert elastic.torch_threads(ComputeConfig(torch_threads=5), 4, use_gpu=False) == 5
