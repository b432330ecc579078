"""Population-based training: decisions follow from the scores, and a restart makes the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from raymae.config import SweepConfig
from raymae.sweep.points import Point
from raymae.sweep.results import Record, best_of, reused
from raymae.sweep.search.graph_search import KEY, REASON, STAGE
from raymae.sweep.search.population import Population, Segment, check_changeable
from raymae.sweep.search.population_search import SEGMENT, PopulationSearch
from raymae.sweep.space import label, parse_axis
from raymae.sweep.trials.sizes import Sizes
from tests.sweep.test_graph import point

SIZES = Sizes(workers=1, cpus=1, gpus=0, room=4, grows=False)
AXES = [parse_axis("finetune.lr=log:1e-5..1e-2"), parse_axis("finetune.weight_decay=0..0.2")]


def population(members: int = 6, generations: int = 3, share: float = 0.25, seed: int = 0) -> Population:
    return Population(axes=AXES, stage="s", members=members, generations=generations, share=share, seed=seed)


def score_of(one: Segment, noise: int) -> float:
    """A score that is a function of the segment."""
    return int(one.key[:8], 16) / 16**8 if noise else 1 / (1 + abs(one.values["finetune.lr"] - 1e-3))


def run(search: PopulationSearch, fails: Any = lambda one: False, most: int = 10_000) -> list[Segment]:
    """Run a search to its end, or to so many segments; returns the segments in the order in which they were run."""
    found: list[Segment] = []
    for number in range(10_000):
        asked = search.suggest(str(number))
        if asked == Searcher.FINISHED or len(found) == most:
            break
        assert asked is not None, "nothing runs, and nothing is handed out"
        if STAGE in asked:
            search.on_trial_complete(str(number), {"status": "finished"})
            continue
        one = Segment(**asked[SEGMENT])
        found.append(one)
        failed = fails(one)
        result = {"status": "failed"} if failed else {"status": "finished", "score": score_of(one, 1)}
        search.on_trial_complete(str(number), result)
    return found


def search_of(some: Population, known: Sequence[Segment] = ()) -> PopulationSearch:
    base: Point = replace(point(1, 0, 0), values={})
    records = [
        Record(key=one.key, changes={}, status="finished", score=score_of(one, 1), lineage=one.lineage())
        for one in known
    ]
    return PopulationSearch(base, some, "score", SIZES, records)


@given(
    members=st.integers(2, 9),
    generations=st.integers(2, 4),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
    cut=st.integers(0, 40),
)
def test_a_restart_replays_the_decisions_and_trains_no_segment_twice(
    members: int, generations: int, share: float, seed: int, cut: int
) -> None:
    some = population(members, generations, share, seed)
    whole = run(search_of(some))
    assert len(whole) == len({one.key for one in whole}) == members * generations
    before = run(search_of(some), most=cut)
    after = run(search_of(some, before))
    assert sorted([*before, *after], key=lambda one: one.key) == sorted(whole, key=lambda one: one.key)


@given(members=st.integers(2, 12), share=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_the_worst_go_on_from_the_best_and_nobody_else_changes(members: int, share: float, seed: int) -> None:
    some = population(members, share=share, seed=seed)
    first = some.first()
    scores = {one.key: score_of(one, 1) for one in first}
    second = some.following(first, scores)
    assert [one.member for one in second] == list(range(members))
    ranked = sorted(first, key=lambda one: (-scores[one.key], one.key))
    count = max(1, int(share * members))
    best, worst = {one.key for one in ranked[:count]}, {one.member for one in ranked[-count:]}
    assert {one.member for one in second if one.source is not None} == worst
    by_key = {one.key: one for one in first}
    for one in second:
        if one.member in worst:
            assert one.parent in best
            assert one.source == by_key[one.parent].member
            assert label(one.values) != label(by_key[one.parent].values)
        else:
            assert (one.parent, one.values) == (first[one.member].key, first[one.member].values)
        for axis in AXES:
            low, high = axis.ends
            assert low <= one.values[axis.path] <= high


def test_stages_come_first_and_a_failed_member_drops_out() -> None:
    some = population(members=4, generations=3)
    search = search_of(some)
    stage = search.suggest("stage")
    assert stage[STAGE] == "pretrain"
    assert search.suggest("other") is None, "the teacher waits for it, and the members wait for both"
    search.on_trial_complete("stage", {"status": "finished"})
    found = run(search, fails=lambda one: (one.generation, one.member) == (1, 2))
    by_generation = [[one.member for one in found if one.generation == number] for number in range(3)]
    assert by_generation == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3]]
    assert run(search_of(some), fails=lambda one: True) == [*some.first()], "nobody is left after the first generation"


@given(seed=st.integers(0, 99), cut=st.integers(0, 14))
def test_a_member_that_failed_changes_no_decision_afterwards(seed: int, cut: int) -> None:
    """A failed segment is tried again, unless later ones have been decided without it."""
    some = population(members=4, generations=4, seed=seed)

    def fails(one: Segment) -> bool:
        return (one.generation, one.member) == (1, 2)

    whole = run(search_of(some), fails)
    before = run(search_of(some), fails, most=cut)
    scored = [one for one in before if not fails(one)]
    after = run(search_of(some, scored))
    if any(one.generation > 1 for one in scored):
        assert sorted([*before, *after], key=lambda one: one.key) == sorted(whole, key=lambda one: one.key)
    else:
        assert len({one.key for one in [*scored, *after]}) == 16, "nobody has dropped out"


def test_a_failed_stage_is_every_members_reason() -> None:
    search = search_of(population(members=2, generations=2))
    stage = search.suggest("stage")
    assert stage[KEY] == "p0"
    search.on_trial_complete("stage", {"status": "failed", "error": "ValueError: no"})
    reasons = []
    for number in range(20):
        asked = search.suggest(str(number))
        if asked == Searcher.FINISHED:
            break
        reasons.append(asked[REASON])
        search.on_trial_complete(str(number), {"status": "failed", "error": asked[REASON]})
    assert len(reasons) == 4, "two stages behind it, and two members"
    assert all("ValueError: no" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("space", "stage", "problem"),
    [
        ("finetune.epochs=1..5", "finetune", "finetune.epochs can't change between two steps of finetune"),
        ("model.mask_ratio=0.5..0.9", "student", "model.mask_ratio can't change"),
        ("finetune.lr=0.1,0.2", "student", r"is a list: .* such as finetune.lr=log:1e-5..1e-3"),
        ("finetune.lr=log:1e-5..1e-3", "consistency", r"it varies ranges of consistency.lr_scale"),
    ],
)
def test_only_ranges_of_what_may_change_during_training(space: str, stage: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_changeable([parse_axis(space)], stage)


def test_the_winner_is_of_the_last_generation() -> None:
    def record(generation: int, score: float, source: int | None = None) -> Record:
        one = Segment(
            key=f"{generation}{score}", generation=generation, generations=2, member=1, values={}, source=source
        )
        return Record(key=one.key, changes={}, status="finished", score=score, lineage=one.lineage())

    records = [record(0, 0.9), record(1, 0.7), record(1, 0.8, source=3)]
    assert best_of(records) == records[2]
    assert [reused(one) for one in records] == [
        "generation 1 of 2, member 2",
        "generation 2 of 2, member 2",
        "generation 2 of 2, member 2, from member 4",
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"search": "population", "trials": 1}, "is no population"),
        ({"search": "population", "generations": 1}, "must be at least 2"),
        ({"search": "population", "exploit_share": 0.6}, r"must lie in \(0, 0.5\]"),
        ({"search": "population", "grace": 0.3}, "has no effect with sweep.search = population"),
        ({"generations": 3}, "has no effect with sweep.search = grid"),
    ],
)
def test_impossible_populations(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SweepConfig(**values)
