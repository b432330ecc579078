"""The order of a sweep's shared stages and points: each once, as soon as what it needs has ended."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from raymae.sweep.points import Point
from raymae.sweep.search.graph import Graph, SharedStage
from raymae.sweep.search.graph_search import AGAIN, KEY, POINT, REASON, STAGE, AskingSearch, GraphSearch, values_of
from raymae.sweep.space import Axis, parse_axis, parse_space
from raymae.sweep.trials.run_trials import name_of
from raymae.sweep.trials.sizes import AVOIDED, WORKERS, Sizes
from tests.support.training import TINY

SIZES = Sizes(workers=1, cpus=1, gpus=0, room=4, grows=False)
NEEDS = {
    "prepare": (),
    "pretrain": ("prepare",),
    "finetune": ("prepare", "pretrain"),
    "pseudo_label": ("prepare", "finetune"),
    "student": ("prepare", "pretrain", "pseudo_label"),
}


def point(number: int, pretrain: int, finetune: int, done: frozenset[str] = frozenset()) -> Point:
    """A point whose stages have these numbers, the later ones beside those before them; some are finished."""
    keys = {"prepare": "store", "pretrain": f"p{pretrain}", "finetune": f"f{pretrain}.{finetune}"}
    keys |= {"pseudo_label": f"l{number}", "student": f"s{number}"}
    nodes = {name: SimpleNamespace(key=key, reused=key in done or name == "prepare") for name, key in keys.items()}
    plan: Any = SimpleNamespace(nodes=nodes, final="student", needs=lambda name: NEEDS[name])
    return Point({"model.mask_ratio": number / 100}, plan)


def graph_of(points: list[Point]) -> Graph:
    graph = Graph()
    graph.add(points)
    return graph


@st.composite
def several(draw: st.DrawFn) -> list[Point]:
    done = frozenset(draw(st.sets(st.sampled_from(["p0", "p1", "f0.0", "f1.1"]))))
    done |= {f"p{key[1]}" for key in done if key.startswith("f")}
    numbers = st.tuples(st.integers(0, 2), st.integers(0, 1))
    drawn = draw(st.lists(numbers, min_size=1, max_size=9))
    return [point(number, *numbers, done) for number, numbers in enumerate(drawn)]


@given(points=several(), data=st.data())
def test_each_is_handed_out_once_and_never_waits_with_resources(points: list[Point], data: st.DataObject) -> None:
    graph, running, ended, order = graph_of(points), [], set[str](), []
    while not graph.is_empty or running:
        one = graph.take()
        assert one is not None or running, "nothing runs, and nothing is handed out"
        if one is not None:
            order.append(one.key)
            plan: Any = points[0].plan if isinstance(one, SharedStage) else one.plan
            if isinstance(one, SharedStage):
                running.append(one)
                assert one.name != "finetune" or f"p{one.key[1]}" not in graph.stages or f"p{one.key[1]}" in ended
            else:
                needed = {plan.nodes[name].key for name in ("pretrain", "finetune")}
                assert needed & set(graph.stages) <= ended
        if running and (one is None or data.draw(st.booleans())):
            stage = running.pop(data.draw(st.integers(0, len(running) - 1)))
            ended.add(stage.key)
            graph.end(stage.key)
    assert len(order) == len(set(order)) == graph.size
    assert {one.key for one in points} <= set(order)


@given(points=several())
def test_what_only_one_point_needs_is_its_own(points: list[Point]) -> None:
    plans: list[Any] = [one.plan for one in points]
    for key, stage in graph_of(points).stages.items():
        users = [plan for plan in plans if key in {node.key for node in plan.nodes.values()}]
        assert len(users) == stage.points > 1
        assert not users[0].nodes[stage.name].reused
        assert stage.name not in ("prepare", "student")


def test_points_of_a_failed_stage_say_why_and_run_nothing() -> None:
    axes: list[Axis] = parse_space(TINY)
    (axis,) = [one for one in axes if one.path == "model.mask_ratio"]
    points = [point(60, 0, 0), point(75, 0, 0), point(90, 1, 0)]
    search = GraphSearch(graph_of(points), [axis], "score", SIZES)
    first, other = search.suggest("a"), search.suggest("b")
    assert (first[STAGE], first[KEY], first[REASON]) == ("pretrain", "p0", "")
    assert STAGE not in other
    assert other[POINT] == {"model.mask_ratio": "0.9"}
    assert search.suggest("c") is None, "the others wait for the pre-training"
    search.on_trial_complete("a", {"status": "failed", "error": "ValueError: no"})
    stage = search.suggest("c")
    assert (stage[STAGE], stage[REASON]) == ("finetune", "pretrain p0 failed: ValueError: no")
    search.on_trial_complete("c", {"status": "failed", "error": stage[REASON]})
    for name in ("d", "e"):
        assert "failed: ValueError: no" in search.suggest(name)[REASON]
    assert search.suggest("f") is None, "those that run may have to be tried again"
    for name in ("b", "d", "e"):
        search.on_trial_complete(name, {"status": "failed"})
    assert search.suggest("f") == Searcher.FINISHED


@pytest.mark.parametrize("result", [None, {}, {"status": "finished"}])
def test_a_stage_whose_process_died_has_failed(result: dict[str, Any] | None) -> None:
    (axis,) = [one for one in parse_space(TINY) if one.path == "model.mask_ratio"]
    search = GraphSearch(graph_of([point(60, 0, 0), point(75, 0, 0)]), [axis], "score", SIZES)
    search.suggest("a")
    search.on_trial_complete("a", result, error=result is None)
    assert bool(search.graph.failed) == (not result)


def test_what_failed_on_a_node_is_tried_once_more_elsewhere() -> None:
    (axis,) = [one for one in parse_space(TINY) if one.path == "model.mask_ratio"]
    search = GraphSearch(graph_of([point(60, 0, 0), point(75, 0, 0)]), [axis], "score", SIZES)
    first = search.suggest("a")
    search.on_trial_complete("a", {"status": "failed", "error": "RuntimeError: disk", AGAIN: "node1"})
    assert search.suggest("b") == first | {AVOIDED: "node1"}
    assert search.suggest("c") is None, "what needs the stage waits for the second try"
    search.on_trial_complete("b", {"status": "finished"})
    assert search.suggest("c")[STAGE] == "finetune"


@given(ready=st.integers(1, 9), room=st.integers(1, 64), workers=st.integers(1, 8))
def test_shared_stages_divide_the_gpus(ready: int, room: int, workers: int) -> None:
    sizes = Sizes(workers=workers, cpus=1, gpus=1, room=max(room, workers), grows=False)
    (axis,) = [one for one in parse_space(TINY) if one.path == "model.mask_ratio"]
    points = [point(number, number // 2, number // 2) for number in range(2 * ready)]  # each pre-training for two
    search = GraphSearch(graph_of(points), [replace(axis, values=tuple(n / 100 for n in range(99)))], "score", sizes)
    asked = [search.suggest(str(number)) for number in range(ready)]
    assert all(one[STAGE] == "pretrain" for one in asked)
    total = sum(one[WORKERS] for one in asked)
    assert all(one[WORKERS] >= workers for one in asked)
    assert total <= max(sizes.room, ready * workers)
    assert max(one[WORKERS] for one in asked) >= sizes.room // ready, "no GPU is left idle"


class Proposing:
    """Proposes the points of a list, and keeps what it is told."""

    def __init__(self, ratios: list[float]) -> None:
        self.ratios, self.told = ratios, dict[str, Any]()

    def ask(self, name: str) -> dict[str, Any]:
        return {"model.mask_ratio": self.ratios.pop(0)}

    def tell(self, name: str, result: dict[str, Any] | None) -> None:
        self.told[name] = (result or {})["score"]


@given(pretrains=st.lists(st.integers(0, 2), min_size=1, max_size=8), data=st.data())
def test_points_that_are_asked_for_share_their_stages_too(pretrains: list[int], data: st.DataObject) -> None:
    """An algorithm that proposes points one by one: no stage is handed out twice, none waits within a trial, each score
    reaches the algorithm."""
    axis, finished = parse_axis("model.mask_ratio=0.01..0.99"), set[str]()

    def plan(values: dict[str, Any]) -> Point:
        number = round(100 * values["model.mask_ratio"])
        return point(number, pretrains[number - 1], 0, frozenset(finished))

    proposing: Any = Proposing([(number + 1) / 100 for number in range(len(pretrains))])
    search = AskingSearch(proposing, plan, [axis], "score", SIZES, trials=len(pretrains))
    running: dict[str, Any] = {}
    stages, scores, count = [], {}, 0
    while (asked := search.suggest(str(count))) != Searcher.FINISHED:
        if asked is not None:
            running[str(count)] = asked
            count += 1
            if STAGE in asked:
                stages.append(asked[KEY])
            else:
                number = round(100 * values_of(asked, [axis])["model.mask_ratio"])
                needed = {f"p{pretrains[number - 1]}", f"f{pretrains[number - 1]}.0", f"l{number}"}
                assert needed <= finished
        assert running, "nothing runs, and nothing is handed out"
        if asked is None or data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(running)))
            ended = running.pop(name)
            if STAGE in ended:
                finished.add(ended[KEY])
            else:
                scores[ended[POINT]["model.mask_ratio"]] = 0.5
            search.on_trial_complete(name, {"status": "finished", "score": 0.5})
    assert len(stages) == len(set(stages))
    assert len(scores) == len(pretrains)
    assert list(proposing.told.values()) == [0.5] * len(pretrains)


def test_trials_have_names_that_say_the_point() -> None:
    point = {POINT: {"model.mask_ratio": "0.75", "data.root": "/a b/ü", "model.patch_size": "16+16"}}
    assert name_of(point) == "mask_ratio=0.75_root=-a-b-_patch_size=16-16"
    assert name_of(point | {STAGE: "pretrain", KEY: "0123abcd"}) == "pretrain-0123abcd"
    assert len(name_of({POINT: {f"model.field{number}": "1" for number in range(99)}})) <= 80
