"""Properties of the order: permutations, every row once per epoch, the same for any number of workers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.training.batches.order import WINDOW_ROWS, Order, PairedOrder, mix, permute


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


def test_permute_is_random() -> None:
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


def test_a_huge_stream_costs_only_the_part_that_is_read() -> None:
    order = make(0, rows=(np.broadcast_to(np.int64(5), 10**9),), weights=(1.0,), epochs=100)
    assert (order.window_rows(order.windows - 1) == 5).all()


def test_neighbours_in_the_store_are_spread() -> None:
    order = make(4096, chunk=8, micro_batch_size=16, global_batch_size=16)
    batch = order.window_rows(3)[:16]
    assert len(np.unique(batch // 8)) >= 8


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="no clip"):
        make(0)


@given(
    labelled=st.integers(1, 90),
    unlabelled=st.integers(1, 200),
    micro=st.integers(1, 5),
    slots=st.integers(1, 3),
    ratio=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_pairs_have_fixed_shares_and_the_first_stream_in_its_own_order(
    labelled: int, unlabelled: int, micro: int, slots: int, ratio: int, seed: int
) -> None:
    rows, size = (np.arange(1000, 1000 + labelled), np.arange(5000, 5000 + unlabelled)), micro * (1 + ratio)
    common = {"seed": seed, "epochs": 2}
    order = PairedOrder(
        rows, (1.0, 1.0), global_batch_size=size * slots, micro_batch_size=size, chunk=4, ratio=ratio, **common
    )
    alone = make(0, rows=rows[:1], global_batch_size=micro * slots, micro_batch_size=micro, **common)
    assert (order.steps, order.windows, order.slots) == (alone.steps, alone.windows, slots)
    others = []
    for window in range(order.windows):
        found = order.window_rows(window).reshape(-1, size)
        assert (found[:, :micro].ravel() == alone.window_rows(window)).all()
        assert (found[:, micro:] >= 5000).all()
        assert np.array_equal(found.ravel(), order.rows_at(order.window_positions(window)))
        others.append(order.window_positions(window).reshape(-1, size)[:, micro:].ravel())
    positions = np.sort(np.concatenate(others))
    assert (positions == 2 * np.arange(len(positions)) + 1).all()
    counts = np.bincount(order.rows_at(positions), minlength=5000 + unlabelled)[5000:]
    assert counts.max() - counts.min() <= 1


def test_pairs_need_rows_of_both() -> None:
    with pytest.raises(ValueError, match="no clip"):
        PairedOrder((np.arange(3), np.arange(0)), (1.0, 1.0), 0, 1, 4, 4, ratio=1)


# Shuffling quality: the table in order.py's docstring ------------------------------------------------------------

ROWS, RECORDING, BATCH, EPOCHS = 2**15, 50, 64, 16


def batches(chunk: int, micro: int) -> np.ndarray:
    """The rows of all batches of 64 (epochs, batches, 64)."""
    rows = (np.arange(ROWS),)
    order = make(0, rows=rows, epochs=EPOCHS, global_batch_size=BATCH, micro_batch_size=micro, chunk=chunk)
    rounds = []
    for first in range(0, order.windows, order.slots):
        slots = [order.window_positions(first + slot).reshape(-1, micro) for slot in range(order.slots)]
        rounds.append(np.concatenate(slots, axis=1))
    return order.rows_at(np.concatenate(rounds).ravel()).reshape(EPOCHS, -1, BATCH)


def permutations() -> np.ndarray:
    """The same of a DataLoader with shuffle=True."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(ROWS).reshape(-1, BATCH) for _ in range(EPOCHS)])


def quality(found: np.ndarray) -> tuple[float, float, float]:
    """Recordings in a batch; spread of the class shares over the batches; percentage of pairs that meet again."""
    recording = found // RECORDING
    recordings = np.mean([len(np.unique(batch)) for batch in recording.reshape(-1, BATCH)])
    labels = np.random.default_rng(1).integers(0, 10, ROWS // RECORDING + 1)[recording].reshape(-1, BATCH)
    shares = np.stack([(labels == label).mean(axis=1) for label in range(10)])
    mean = shares.mean(axis=1)
    spread = shares.var(axis=1).sum() / (mean * (1 - mean) / BATCH).sum()
    again = []
    for epoch, following in itertools.pairwise(found):
        batch_of = np.empty(ROWS, np.int64)
        batch_of[following.ravel()] = np.repeat(np.arange(len(following)), BATCH)
        met = [np.unique(batch_of[batch], return_counts=True)[1] for batch in epoch]
        again.append(np.mean([(count * (count - 1)).sum() / (BATCH * (BATCH - 1)) for count in met]))
    return float(recordings), float(spread), 100 * float(np.mean(again))


def test_chunks_of_one_are_a_full_permutation() -> None:
    full = quality(permutations())
    assert full == pytest.approx((61, 1.0, 0.19), rel=0.03)
    for micro in (64, 16):
        assert quality(batches(1, micro)) == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize(
    ("chunk", "micro", "recordings", "spread", "again"),
    [
        (4, 64, 30, 2.4, 0.9),
        (4, 16, 52, 1.3, 0.23),
        (8, 64, 17, 4.2, 1.8),
        (8, 16, 43, 1.8, 0.28),
        (32, 64, 6.3, 13, 8.0),
        (32, 16, 22, 3.8, 0.6),
    ],
)
def test_the_table_of_the_docstring(chunk: int, micro: int, recordings: float, spread: float, again: float) -> None:
    found = quality(batches(chunk, micro))
    assert found == pytest.approx((recordings, spread, again), rel=0.1)
    # shuffling within the window leaves some rows of a chunk in the same micro-batch
    assert found[1] < 1.1 * (1 + (chunk - 1) * (micro - 1) / (WINDOW_ROWS - 1))
