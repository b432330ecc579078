"""Mixing groups cut from windows: the same for any number of workers, from any step."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.training.batches.order import Order
from raymae.training.batches.windows import Group, Window, ahead, rank_slots, rank_steps, rank_windows

WORKERS = (1, 2, 3, 4)


def make_order(n: int = 300) -> Order:
    return Order(rows=(np.arange(n),), weights=(1.0,), seed=1, epochs=3, global_batch_size=32, group_size=8, chunk=4)


def window(order: Order, number: int) -> Window:
    positions = order.window_positions(number)
    rows = order.rows_at(positions)
    return Window(positions, rows, rows[:, None, None].astype(np.float16), rows.astype(np.int32))


def of_rank(order: Order, rank: int, workers: int, step: int = 0) -> Iterator[tuple[int, list[Group]]]:
    numbers = rank_windows(order, rank, workers, step)
    return rank_steps(order, (window(order, number) for number in numbers), rank, workers, step)


def rows_by_place(steps: Iterator[tuple[int, list[Group]]]) -> dict[int, list[int]]:
    return {group.place: group.rows.tolist() for _, groups in steps for group in groups}


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_workers_share_the_groups_of_one_worker(workers: int) -> None:
    order = make_order()
    alone = rows_by_place(of_rank(order, 0, 1))
    ranks = [list(of_rank(order, rank, workers)) for rank in range(workers)]
    together = {place: rows for steps in ranks for place, rows in rows_by_place(iter(steps)).items()}
    assert together == alone
    assert list(alone) == list(range(0, order.steps * order.global_batch_size, order.group_size))
    assert sum(len(groups) for steps in ranks for _, groups in steps) == len(alone)
    for steps in ranks:
        assert [step for step, _ in steps] == list(range(order.steps))
        assert all(group.place // order.global_batch_size == step for step, groups in steps for group in groups)


@given(step=st.integers(0, 28), workers=st.sampled_from(WORKERS))
def test_resuming_at_any_step_repeats_the_rest(step: int, workers: int) -> None:
    order = make_order()
    for rank in range(workers):
        rest = list(of_rank(order, rank, workers, step))
        assert [number for number, _ in rest] == list(range(step, order.steps))
        whole = rows_by_place(of_rank(order, rank, workers))
        assert rows_by_place(iter(rest)) == {
            place: rows for place, rows in whole.items() if place >= step * order.global_batch_size
        }


@given(slots=st.integers(1, 70), data=st.data())
def test_ranks_have_neighbouring_slots_and_equally_many_or_one_more(slots: int, data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, slots))
    shares = [rank_slots(slots, rank, workers) for rank in range(workers)]
    assert [slot for share in shares for slot in share] == list(range(slots))
    assert {len(share) for share in shares} <= {slots // workers, -(-slots // workers)}


def test_rows_come_with_their_features() -> None:
    for _, groups in list(of_rank(make_order(), 0, 1))[:5]:
        for group in groups:
            np.testing.assert_array_equal(group.values[:, 0, 0], group.rows.astype(np.float16))
            np.testing.assert_array_equal(group.valid, group.rows)


def test_a_window_out_of_order_is_an_error() -> None:
    order = make_order()
    numbers = iter([1, 0, 2, 3])
    with pytest.raises(RuntimeError, match="out of order"):
        next(rank_steps(order, (window(order, number) for number in numbers), 0, 1, 0))


def test_there_are_at_most_as_many_workers_as_groups() -> None:
    with pytest.raises(AssertionError, match="5 workers can't share 4 mixing groups"):
        next(of_rank(make_order(), 0, 5))


def test_ahead_yields_all_windows_and_raises_errors() -> None:
    order = make_order()
    windows = [window(order, number) for number in range(4)]
    assert [w.rows.tolist() for w in ahead(iter(windows), 2)] == [w.rows.tolist() for w in windows]

    def broken():
        yield windows[0]
        raise OSError("disk gone")

    found = ahead(broken(), 2)
    next(found)
    with pytest.raises(OSError, match="disk gone"):
        next(found)


READING = """
import itertools
import torch
from raymae.training.batches.prefetch import Prefetch
from raymae.training.batches.windows import ahead

def read(number):
    return torch.ones(200, 200) @ torch.ones(200, 200)

steps = ahead((torch.relu(item) for item in Prefetch(read, itertools.count(), 8)), 2)
for _ in range(3):
    next(steps)
"""


def test_a_process_that_stops_reading_in_the_middle_ends_in_order() -> None:
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", READING], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
