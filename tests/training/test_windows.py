"""Micro-batches cut from windows: the same for any number of workers, from any step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.training.batches.order import Order
from raymae.training.batches.windows import MicroBatch, Window, ahead, micro_batches


def make_order(n: int = 300) -> Order:
    return Order(
        rows=(np.arange(n),), weights=(1.0,), seed=1, epochs=3, global_batch_size=32, micro_batch_size=8, chunk=4
    )


def window(order: Order, number: int) -> Window:
    positions = order.window_positions(number)
    rows = order.rows_at(positions)
    return Window(positions, rows, rows[:, None, None].astype(np.float16), rows.astype(np.int32))


def of_rank(order: Order, rank: int, workers: int, step: int = 0) -> list[MicroBatch]:
    numbers = range(order.first_window(step) + rank, order.windows, workers)
    return list(micro_batches(order, (window(order, number) for number in numbers), rank, workers, step))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_the_micro_batches_of_one_worker(workers: int) -> None:
    order = make_order()
    alone = {batch.index: batch.rows.tolist() for batch in of_rank(order, 0, 1)}
    together = {b.index: b.rows.tolist() for rank in range(workers) for b in of_rank(order, rank, workers)}
    assert together == alone
    assert list(alone) == list(range(order.steps * order.slots))


@given(step=st.integers(0, 28), workers=st.sampled_from([1, 2, 4]))
def test_resuming_at_any_step_repeats_the_rest(step: int, workers: int) -> None:
    order = make_order()
    for rank in range(workers):
        whole = [b for b in of_rank(order, rank, workers) if b.index >= step * order.slots]
        rest = of_rank(order, rank, workers, step)
        assert [(b.index, b.rows.tolist()) for b in rest] == [(b.index, b.rows.tolist()) for b in whole]


def test_rows_come_with_their_features() -> None:
    for batch in of_rank(make_order(), 0, 1)[:20]:
        np.testing.assert_array_equal(batch.log_mel[:, 0, 0], batch.rows.astype(np.float16))
        np.testing.assert_array_equal(batch.valid_frames, batch.rows)


def test_a_window_out_of_order_is_an_error() -> None:
    order = make_order()
    numbers = iter([1, 0, 2, 3])
    with pytest.raises(RuntimeError, match="out of order"):
        next(micro_batches(order, (window(order, number) for number in numbers), 0, 1, 0))


def test_the_number_of_workers_must_divide_the_micro_batches() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        next(micro_batches(make_order(), iter([]), 0, 3, 0))


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
