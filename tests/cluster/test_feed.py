"""What Ray Data deals out to training workers: every window, to the worker that it belongs to, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.cluster.feed import FILLER, WindowReader, emitted, next_window, segments, windows_of
from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.training.batches.order import Order
from raymae.training.batches.windows import rank_steps, rank_windows, read_groups
from tests.support.training import TINY, make_spec


def make_order(slots: int, rows: int) -> Order:
    return Order(
        rows=(np.arange(rows),), weights=(1.0,), seed=0, epochs=3, global_batch_size=slots * 4, group_size=4, chunk=2
    )


@given(slots=st.integers(1, 20), rows=st.integers(1, 3000), data=st.data())
def test_every_rank_gets_its_windows_of_every_round_in_order(slots: int, rows: int, data: st.DataObject) -> None:
    """Block k goes to rank k mod W."""
    order = make_order(slots, rows)
    workers = data.draw(st.integers(1, slots))
    step = data.draw(st.integers(0, order.steps - 1))
    found = emitted(order, order.first_window(step), order.windows, workers)
    for rank in range(workers):
        own = [number for number in found[rank::workers] if number != FILLER]
        assert own == list(rank_windows(order, rank, workers, step))
    rounds = (order.windows - order.first_window(step)) // slots
    assert len(found) == rounds * workers * -(-slots // workers), "more fillers than a round needs"


@given(slots=st.integers(1, 9), rows=st.integers(1, 3000), at_once=st.integers(1, 40), data=st.data())
def test_segments_are_whole_rounds_and_hold_the_rest_of_the_run(
    slots: int, rows: int, at_once: int, data: st.DataObject
) -> None:
    order = make_order(slots, rows)
    spec: Any = SimpleNamespace(order=lambda: order, config=replace(TINY, compute=ComputeConfig(feed_windows=at_once)))
    first = order.first_window(data.draw(st.integers(0, order.steps - 1)))
    parts = segments(spec, first)
    assert parts[0] == first
    assert all(start % slots == 0 for start in parts)
    assert slots <= parts.step <= max(slots, at_once)
    assert parts[-1] < order.windows <= parts[-1] + parts.step


@dataclass
class Split:
    """What a rank is dealt, as a `ray.data.DataIterator`."""

    blocks: list[pa.Table]

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        return iter(self.blocks)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_fed_worker_has_the_groups_of_one_that_reads(store: FeatureStore, tmp_path: Path, workers: int) -> None:
    config = replace(TINY, pretrain=replace(TINY.pretrain, mixing_group=4, epochs=3))
    spec = make_spec(store, tmp_path, config=config)
    order, reader = spec.order(), WindowReader(spec)
    numbers = emitted(order, 0, order.windows, workers)
    assert (FILLER in numbers) == (order.slots % workers > 0)
    blocks = [reader({"window": np.array([number])}) for number in numbers]
    assert len({block.schema.to_string() for block in blocks}) == 1
    for rank in range(workers):
        windows = windows_of(Split(blocks[rank::workers]), spec.store.layout)
        fed = rank_steps(order, windows, rank, workers, 0)
        for (step, groups), (other, expected) in zip(fed, read_groups(store, order, rank, workers, 0), strict=True):
            assert step == other
            assert [group.place for group in groups] == [group.place for group in expected]
            for group, one in zip(groups, expected, strict=True):
                np.testing.assert_array_equal(group.values, one.values)
                np.testing.assert_array_equal(group.valid, one.valid)


def test_a_run_resumes_with_the_round_of_its_checkpoint(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    order = spec.order()
    assert next_window(spec, None) == 0
    for step in (1, order.window_steps, order.steps - 1):
        assert next_window(spec, f"{step:09d}-x") == order.first_window(step)
    assert next_window(spec, f"{order.steps:09d}-x") == order.windows - order.slots
