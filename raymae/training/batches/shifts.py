"""Clips of long recordings whose starts are shifted in every epoch. Without torch: data workers import this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.features.draws import hashed, mix

if TYPE_CHECKING:
    from raymae.features.store import FeatureStore


def read_shifted(store: FeatureStore, rows: Rows, epochs: Rows, seed: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Read clips as `store.read_for_training`, those of long recordings shifted by a random offset per recording and
    epoch.

    The clips of a recording are its frames as a ring, cut at the offset, which is below a clip's length: an epoch has
    every frame once, and one clip may hold the end and the beginning. All clips but the last are full. A recording of
    one clip is read as it is. The offset is a whole number of frames, of waveforms too.
    """
    first, count = store.recordings
    several = count[rows] > 1
    if not several.any():
        return store.read_for_training(rows)
    n_frames, layout = store.audio.n_frames, store.layout
    offsets = np.zeros(len(rows), np.int64)
    for epoch in np.unique(epochs[several]):
        here = several & (epochs == epoch)
        draws = hashed(first[rows[here]].astype(np.uint64), mix(seed, 4, int(epoch)))
        offsets[here] = (draws % np.uint64(n_frames)).astype(np.int64) * layout.step
    after = np.where(several, first[rows] + (rows - first[rows] + 1) % count[rows], rows)
    needed, place = np.unique(np.concatenate([rows, after, first[rows]]), return_inverse=True)
    own, following, beginning = place.reshape(3, -1)
    values, valid = store.read_for_training(needed)
    found = np.full((len(rows), *layout.shape), layout.rest, layout.dtype)
    lengths = np.empty(len(rows), np.int32)
    for item, offset in enumerate(offsets.tolist()):
        parts = [values[number][: valid[number]] for number in (own[item], following[item], beginning[item])]
        last = rows[item] - first[rows[item]] == count[rows[item]] - 1
        clip = np.concatenate(shifted(parts, offset, bool(last)) if several[item] else parts[:1])
        found[item, : len(clip)], lengths[item] = clip, len(clip)
    return found, lengths


def shifted(parts: list[NDArray[Any]], offset: int, last: bool) -> list[NDArray[Any]]:
    """The pieces of a clip at `offset`, from its own frames, those of the next clip and those of the first.

    The next clip of the `last` one is the first.
    """
    own, following, beginning = parts
    if last:
        return [own[offset:], beginning[max(0, offset - len(own)) : offset]]
    return [own[offset:], following[:offset], beginning[: max(0, offset - len(following))]]
