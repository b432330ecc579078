"""How a rank's mixing groups are divided into forward passes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raymae.training.batches.passes import Passes
from raymae.training.batches.windows import Group, rank_slots


@st.composite
def shared(draw: st.DrawFn) -> tuple[Passes, list[int]]:
    """Passes, and the groups of every rank."""
    slots = draw(st.integers(1, 80))
    workers = draw(st.integers(1, slots))
    own = [len(rank_slots(slots, rank, workers)) for rank in range(workers)]
    same = draw(st.tuples(st.booleans(), st.booleans()))
    passes = Passes(draw(st.integers(1, 100)), -(-slots // workers), same_size=same[0], same_number=same[1])
    assert passes.largest == max(own)
    return passes, own


@given(case=shared())
def test_every_group_counts_once(case: tuple[Passes, list[int]]) -> None:
    passes, ranks = case
    for own in ranks:
        divided = passes.divide(own)
        assert [group for groups, count in divided for group in groups[:count]] == list(range(own))
        for groups, count in divided:
            assert 0 <= count <= len(groups) <= passes.most
            assert len(groups) >= 1
            assert set(groups) <= set(range(own))


@given(case=shared())
def test_passes_are_filled_up_only_where_they_have_to_be(case: tuple[Passes, list[int]]) -> None:
    passes, ranks = case
    divided = {own: passes.divide(own) for own in ranks}
    sizes = {len(groups) for found in divided.values() for groups, _ in found}
    assert sizes == {passes.size} if passes.same_size else max(sizes) == passes.size
    numbers = {len(found) for found in divided.values()}
    assert numbers == {passes.number} if passes.same_number else max(numbers) == passes.number
    for own, found in divided.items():
        needed = -(-own // passes.size)
        assert len(found) in (needed, passes.number)
        if not passes.same_size:
            assert all(len(groups) == max(1, count) for groups, count in found)
        if not passes.same_number:
            assert all(count for _, count in found)


@given(case=shared())
def test_no_fewer_passes_would_do_and_none_is_much_smaller(case: tuple[Passes, list[int]]) -> None:
    passes, _ = case
    assert (passes.number - 1) * passes.most < passes.largest <= passes.number * passes.size
    assert passes.number * (passes.size - 1) < passes.largest


def test_clips_come_with_their_places_and_weights() -> None:
    groups = [
        Group(place, np.arange(place, place + 2), np.full((2, 3, 4), place, np.float16), np.array([3, 1], np.int32))
        for place in (10, 12, 14)
    ]
    first, second = Passes(most=2, largest=3, same_size=True).clips(groups)
    assert first.places.tolist() == first.rows.tolist() == [10, 11, 12, 13]
    assert (first.weight.tolist(), second.weight.tolist()) == ([1, 1, 1, 1], [1, 1, 0, 0])
    assert second.places.tolist() == [14, 15, 10, 11]
    assert [int(clip[0, 0]) for clip in second.values] == [14, 14, 10, 10]
    assert second.valid.tolist() == [3, 1, 3, 1]
    swapped = second.take(np.array([2, 0]))
    assert (swapped.places.tolist(), swapped.weight.tolist()) == ([10, 14], [0, 1])
    assert [int(clip[0, 0]) for clip in swapped.values] == [10, 14]
