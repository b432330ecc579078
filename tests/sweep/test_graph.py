"""The order of a sweep's shared stages and points: each once, as soon as what it needs has ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from raymae.sweep.graph import Graph, SharedStage
from raymae.sweep.graph_search import KEY, POINT, REASON, STAGE, GraphSearch
from raymae.sweep.points import Point
from raymae.sweep.space import Axis, parse_space
from tests.support.training import TINY

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


@st.composite
def several(draw: st.DrawFn) -> list[Point]:
    done = frozenset(draw(st.sets(st.sampled_from(["p0", "p1", "f0.0", "f1.1"]))))
    done |= {f"p{key[1]}" for key in done if key.startswith("f")}
    numbers = st.tuples(st.integers(0, 2), st.integers(0, 1))
    drawn = draw(st.lists(numbers, min_size=1, max_size=9))
    return [point(number, *numbers, done) for number, numbers in enumerate(drawn)]


@given(points=several(), data=st.data())
def test_each_is_handed_out_once_and_never_waits_with_resources(points: list[Point], data: st.DataObject) -> None:
    graph, running, ended, order = Graph(points), [], set[str](), []
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
    for key, stage in Graph(points).stages.items():
        users = [plan for plan in plans if key in {node.key for node in plan.nodes.values()}]
        assert len(users) == stage.points > 1
        assert not users[0].nodes[stage.name].reused
        assert stage.name not in ("prepare", "student")


def test_points_of_a_failed_stage_say_why_and_run_nothing() -> None:
    axes: list[Axis] = parse_space(TINY)
    (axis,) = [one for one in axes if one.path == "model.mask_ratio"]
    points = [point(60, 0, 0), point(75, 0, 0), point(90, 1, 0)]
    search = GraphSearch(Graph(points), [axis], "score")
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
    assert search.suggest("f") == Searcher.FINISHED


@pytest.mark.parametrize("result", [None, {}, {"status": "finished"}])
def test_a_stage_whose_process_died_has_failed(result: dict[str, Any] | None) -> None:
    (axis,) = [one for one in parse_space(TINY) if one.path == "model.mask_ratio"]
    search = GraphSearch(Graph([point(60, 0, 0), point(75, 0, 0)]), [axis], "score")
    search.suggest("a")
    search.on_trial_complete("a", result, error=result is None)
    assert bool(search.graph.failed) == (not result)
