"""Properties of the order: permutations, every row once per epoch, the same for any number of workers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.features.draws import mix
from raymae.training.batches.order import LEAST_STEPS, ROUND_ROWS, WINDOW_ROWS, Order, PairedOrder, permute


def make(n: int, **changes) -> Order:
    settings = {
        "rows": (np.arange(1000, 1000 + n),),
        "weights": (1.0,),
        "seed": 0,
        "epochs": 3,
        "global_batch_size": 8,
        "group_size": 2,
        "chunk": 4,
    }
    return Order(**(settings | changes))


@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permute_is_random() -> None:
    n = 2000
    where = permute(np.arange(n), n, mix(7))
    assert abs(np.corrcoef(np.arange(n), where)[0, 1]) < 0.08
    assert (where == permute(np.arange(n), n, mix(8))).mean() < 0.01


@given(
    n=st.integers(1, 400),
    group=st.integers(1, 5),
    slots=st.integers(1, 4),
    epochs=st.integers(1, 4),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_every_row_once_per_epoch(n: int, group: int, slots: int, epochs: int, chunk: int, seed: int) -> None:
    order = make(n, group_size=group, global_batch_size=group * slots, epochs=epochs, chunk=chunk, seed=seed)
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


def test_a_huge_stream_costs_only_the_part_that_is_read() -> None:
    order = make(0, rows=(np.broadcast_to(np.int64(5), 10**9),), weights=(1.0,), epochs=100)
    assert (order.window_rows(order.windows - 1) == 5).all()


def test_neighbours_in_the_store_are_spread() -> None:
    order = make(4096, chunk=8, group_size=16, global_batch_size=16)
    batch = order.window_rows(3)[:16]
    assert len(np.unique(batch // 8)) >= 8


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="no clip"):
        make(0)


@given(
    labelled=st.integers(1, 90),
    unlabelled=st.integers(1, 200),
    group=st.integers(1, 5),
    slots=st.integers(1, 3),
    ratio=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_pairs_have_fixed_shares_and_the_first_stream_in_its_own_order(
    labelled: int, unlabelled: int, group: int, slots: int, ratio: int, seed: int
) -> None:
    rows, size = (np.arange(1000, 1000 + labelled), np.arange(5000, 5000 + unlabelled)), group * (1 + ratio)
    common = {"seed": seed, "epochs": 2}
    order = PairedOrder(
        rows, (1.0, 1.0), global_batch_size=size * slots, group_size=size, chunk=4, shares=(1, ratio), **common
    )
    alone = make(0, rows=rows[:1], global_batch_size=group * slots, group_size=group, **common)
    assert (order.steps, order.windows, order.slots) == (alone.steps, alone.windows, slots)
    others = []
    for window in range(order.windows):
        found = order.window_rows(window).reshape(-1, size)
        assert (found[:, :group].ravel() == alone.window_rows(window)).all()
        assert (found[:, group:] >= 5000).all()
        assert np.array_equal(found.ravel(), order.rows_at(order.window_positions(window)))
        others.append(order.window_positions(window).reshape(-1, size)[:, group:].ravel())
    positions = np.sort(np.concatenate(others))
    assert (positions == 2 * np.arange(len(positions)) + 1).all()
    counts = np.bincount(order.rows_at(positions), minlength=5000 + unlabelled)[5000:]
    assert counts.max() - counts.min() <= 1


def test_pairs_need_rows_of_both() -> None:
    with pytest.raises(ValueError, match="no clip"):
        PairedOrder((np.arange(3), np.arange(0)), (1.0, 1.0), 0, 1, 4, 4)


# Shuffling quality: the table in order.py's docstring ------------------------------------------------------------

ROWS, RECORDING, BATCH, EPOCHS = 2**15, 50, 64, 16


def batches(chunk: int, group: int, batch: int = BATCH, rows: int = ROWS, epochs: int = EPOCHS) -> np.ndarray:
    """The rows of all batches (epochs, batches, batch)."""
    stored = (np.arange(rows),)
    order = make(0, rows=stored, epochs=epochs, global_batch_size=batch, group_size=group, chunk=chunk)
    rounds = []
    for first in range(0, order.windows, order.slots):
        slots = [order.window_positions(first + slot).reshape(-1, group) for slot in range(order.slots)]
        rounds.append(np.concatenate(slots, axis=1))
    return order.rows_at(np.concatenate(rounds).ravel()).reshape(epochs, -1, batch)


def permutations() -> np.ndarray:
    """The same of a DataLoader with shuffle=True."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(ROWS).reshape(-1, BATCH) for _ in range(EPOCHS)])


def spread(found: np.ndarray) -> float:
    """Spread of the class shares over the batches (epochs, batches, batch)."""
    size, labels = found.shape[2], np.random.default_rng(1).integers(0, 10, found.max() // RECORDING + 1)
    of_batch = labels[found // RECORDING].reshape(-1, size)
    shares = np.stack([(of_batch == label).mean(axis=1) for label in range(10)])
    mean = shares.mean(axis=1)
    return float(shares.var(axis=1).sum() / (mean * (1 - mean) / size).sum())


def quality(found: np.ndarray) -> tuple[float, float, float]:
    """Recordings in a batch; spread of the class shares over the batches; percentage of pairs that meet again."""
    recordings = np.mean([len(np.unique(batch)) for batch in (found // RECORDING).reshape(-1, BATCH)])
    again = []
    for epoch, following in itertools.pairwise(found):
        batch_of = np.empty(ROWS, np.int64)
        batch_of[following.ravel()] = np.repeat(np.arange(len(following)), BATCH)
        met = [np.unique(batch_of[batch], return_counts=True)[1] for batch in epoch]
        again.append(np.mean([(count * (count - 1)).sum() / (BATCH * (BATCH - 1)) for count in met]))
    return float(recordings), spread(found), 100 * float(np.mean(again))


def formula(chunk: int, group: int, batch: int = BATCH) -> float:
    """The docstring's approximation of the spread."""
    order = make(ROWS, global_batch_size=batch, group_size=group, chunk=chunk)
    return 1 + (chunk - 1) * (group - 1) / (order.window_steps * group - 1)


def test_chunks_of_one_are_a_full_permutation() -> None:
    full = quality(permutations())
    assert full == pytest.approx((61, 1.0, 0.19), rel=0.03)
    for group in (64, 16, 8):
        assert quality(batches(1, group)) == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize(
    ("chunk", "group", "recordings", "spread", "again"),
    [
        (4, 64, 30, 2.4, 0.9),
        (4, 16, 52, 1.3, 0.23),
        (4, 8, 57, 1.15, 0.2),
        (8, 64, 17, 4.2, 1.8),
        (8, 16, 43, 1.8, 0.28),
        (8, 8, 52, 1.35, 0.21),
        (32, 64, 6.3, 13, 8.0),
        (32, 16, 22, 3.9, 0.6),
        (32, 8, 34, 2.3, 0.28),
    ],
)
def test_the_table_of_the_docstring(chunk: int, group: int, recordings: float, spread: float, again: float) -> None:
    found = quality(batches(chunk, group))
    assert found == pytest.approx((recordings, spread, again), rel=0.05)
    # some chunks hold the seam of two recordings
    assert found[1] < 1.02 * formula(chunk, group)


@pytest.mark.parametrize(
    ("group", "batch", "expected"), [(8, 64, 1.39), (8, 512, 1.78), (8, 2048, 2.58), (16, 64, 1.83)]
)
def test_the_formula_of_the_docstring(group: int, batch: int, expected: float) -> None:
    """Also where a window has fewer than 128 rows, because a step is large; of a store that is large against it."""
    assert formula(8, group, batch) == pytest.approx(expected, abs=0.005)
    assert spread(batches(8, group, batch, rows=2**18, epochs=4)) == pytest.approx(expected, rel=0.05)


@given(group=st.integers(1, 300), slots=st.integers(1, 1000), rows=st.integers(1, 5000), epochs=st.integers(1, 3))
def test_a_round_is_small_and_a_window_has_several_steps(group: int, slots: int, rows: int, epochs: int) -> None:
    order = make(rows, global_batch_size=group * slots, group_size=group, epochs=epochs)
    steps = order.window_steps
    assert steps == 1 or steps * group <= WINDOW_ROWS
    assert steps <= LEAST_STEPS or steps * order.global_batch_size <= ROUND_ROWS
    # no more steps would do, unless groups are too large for it
    assert (steps + 1) * group > WINDOW_ROWS or (
        steps >= LEAST_STEPS and (steps + 1) * order.global_batch_size > ROUND_ROWS
    )
