"""Shifted clips of long recordings: every frame once in an epoch, elsewhere in the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.config import AudioConfig
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore
from raymae.training.batches.order import Order
from raymae.training.batches.shifts import read_shifted
from raymae.training.batches.windows import read_window
from tests.support.audio_files import TINY_AUDIO

T, F = TINY_AUDIO.n_frames, TINY_AUDIO.n_mels


@dataclass(frozen=True)
class Numbered(FeatureStore):
    """A store whose every valid frame holds its own number, from recordings of some lengths in frames."""

    lengths: tuple[int, ...] = ()
    _is_long = False

    @cached_property
    def audio(self) -> AudioConfig:
        return TINY_AUDIO

    @cached_property
    def parts(self) -> list[tuple[int, int, int]]:
        """Recording, first frame and frames of every clip."""
        return [
            (number, start, min(T, length - start))
            for number, length in enumerate(self.lengths)
            for start in range(0, length, T)
        ]

    @cached_property
    def clips(self) -> pa.Table:
        return pa.table({"recording": [f"r{number}" for number, _, _ in self.parts]})

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        found = np.full((len(rows), T, F), TINY_AUDIO.silence, np.float16)
        for place, row in enumerate(rows):
            number, start, frames = self.parts[row]
            found[place, :frames, 0] = np.arange(start, start + frames)
            found[place, :frames, 1] = number
        return found, np.array([self.parts[row][2] for row in rows], np.int32)


def store_of(lengths: list[int]) -> Numbered:
    return Numbered(folder=None, shards=None, lengths=tuple(lengths))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4 * T), min_size=1, max_size=5), st.integers(0, 99), st.integers(0, 2**32), st.data())
def test_an_epoch_has_every_frame_once(lengths: list[int], epoch: int, seed: int, data: st.DataObject) -> None:
    store = store_of(lengths)
    rows = np.array(data.draw(st.permutations(range(len(store.parts)))), np.int64)
    log_mel, frames = read_shifted(store, rows, np.full(len(rows), epoch), seed)
    found = [
        (int(clip[frame, 1]), int(clip[frame, 0]))
        for clip, valid in zip(log_mel, frames, strict=True)
        for frame in range(valid)
    ]
    assert sorted(found) == [(number, frame) for number, length in enumerate(lengths) for frame in range(length)]
    short = [row for row, valid in zip(rows.tolist(), frames, strict=True) if valid < T]
    assert all(row + 1 == len(store.parts) or store.parts[row + 1][0] != store.parts[row][0] for row in short)
    assert (log_mel[np.arange(T) >= frames[:, None]] == np.float16(TINY_AUDIO.silence)).all()


def test_a_recording_begins_elsewhere_in_every_epoch_and_others_elsewhere() -> None:
    store = store_of([5 * T, 5 * T, T - 3])
    begins = {
        tuple(int(read_shifted(store, np.array([row]), np.array([epoch]), 7)[0][0, 0, 0]) for row in (0, 5, 10))
        for epoch in range(20)
    }
    assert len({one for one, _, _ in begins}) > 10
    assert sum(one == other for one, other, _ in begins) < 3
    assert {alone for _, _, alone in begins} == {0}


def test_windows_of_an_order_hold_an_epoch() -> None:
    store = store_of([3 * T + 5] * 4)
    rows = np.arange(len(store.parts))
    order = Order(rows=(rows,), weights=(1.0,), seed=3, epochs=2, global_batch_size=4, group_size=4, shifted=True)
    found: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for number in range(order.windows):
        window = read_window(store, order, number)
        for position, clip, valid in zip(window.positions, window.values, window.valid, strict=True):
            found[int(position) // len(rows)] += [(int(one[1]), int(one[0])) for one in clip[:valid]]
    assert all(len(set(frames)) == len(frames) == 4 * (3 * T + 5) for frames in found.values())
