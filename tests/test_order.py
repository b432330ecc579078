"""Properties of the order: permutations, every row once per epoch, the same for any number of workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.order import Order, mix, permute


def make(n: int, **changes) -> Order:
    settings = {
        "rows": (np.arange(1000, 1000 + n),),
        "weights": (1.0,),
        "seed": 0,
        "epochs": 3,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "chunk": 4,
    }
    return Order(**(settings | changes))


@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permute_looks_random() -> None:
    n = 2000
    where = permute(np.arange(n), n, mix(7))
    assert abs(np.corrcoef(np.arange(n), where)[0, 1]) < 0.08
    assert (where == permute(np.arange(n), n, mix(8))).mean() < 0.01


@given(
    n=st.integers(1, 400),
    micro=st.integers(1, 5),
    slots=st.integers(1, 4),
    epochs=st.integers(1, 4),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_every_row_once_per_epoch(n: int, micro: int, slots: int, epochs: int, chunk: int, seed: int) -> None:
    order = make(n, micro_batch_size=micro, global_batch_size=micro * slots, epochs=epochs, chunk=chunk, seed=seed)
    positions = np.concatenate([order.window_positions(window) for window in range(order.windows)])
    assert len(positions) == order.steps * order.global_batch_size
    assert sorted(positions) == list(range(len(positions)))
    stream = order.rows_at(np.arange(len(positions)))
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == sorted(order.rows[0])


@given(n=st.integers(30, 300), epochs=st.floats(0.3, 4), step=st.integers(0, 200))
def test_windows_cover_the_rest_of_the_run_from_any_step(n: int, epochs: float, step: int) -> None:
    order = make(n, epochs=epochs)
    step = min(step, order.steps - 1)
    first = order.first_window(step)
    assert step in order.round_steps(first)
    assert first % order.slots == 0
    served = [s for window in range(first, order.windows) for s in order.round_steps(window)]
    assert all(served.count(s) == order.slots for s in range(step, order.steps))


def test_epochs_and_seeds_differ() -> None:
    order = make(200)
    stream = order.rows_at(np.arange(400))
    assert (stream[:200] != stream[200:]).mean() > 0.9
    assert (stream[:200] != make(200, seed=1).rows_at(np.arange(200))).mean() > 0.9


def test_weights_are_visits_per_epoch() -> None:
    rows = (np.arange(100), np.arange(100, 150), np.arange(150, 190))
    order = make(0, rows=rows, weights=(0.5, 2.0, 1.0), epochs=2)
    assert order.rows_per_epoch == 50 + 100 + 40
    counts = np.bincount(order.rows_at(np.arange(2 * order.rows_per_epoch)), minlength=190)
    assert (counts[:100] == 1).all()
    assert (counts[100:150] == 4).all()
    assert (counts[150:] == 2).all()


def test_a_huge_stream_costs_only_what_is_asked() -> None:
    order = make(0, rows=(np.broadcast_to(np.int64(5), 10**9),), weights=(1.0,), epochs=100)
    assert (order.window_rows(order.windows - 1) == 5).all()


def test_neighbours_in_the_store_are_spread() -> None:
    order = make(4096, chunk=8, micro_batch_size=16, global_batch_size=16)
    batch = order.window_rows(3)[:16]
    assert len(np.unique(batch // 8)) >= 8


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clip"):
        make(0)
