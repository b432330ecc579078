"""Recordings that a table doesn't know to belong together, found from the audio: twins by ear.

Clips of one recording share the fine structure of their background, whatever gain and microphone add to it. What tells
recordings apart is learnt from the table itself: the halves of a clip are known to be one recording, so directions in
which halves differ count little (linear discriminant analysis), and no label is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter1d

from raymae.audio.decode import AudioError, load
from raymae.audio.logmel import LogMel
from raymae.audio.sources import open_clip
from raymae.config import AudioConfig

FRONT_END = AudioConfig(
    sample_rate=16_000, n_fft=2048, win_length=2048, hop_length=640, n_mels=128, f_min=50.0, pre_emphasis=0.0,
    log_offset=1e-9, norm_mean=0.0, norm_scale=1.0,
)  # fmt: skip
"""Natural logarithms of power in narrow bands, 25 a second."""
SMOOTH = 8.0
"""Bands over which a spectrum is smoothed; what is left above that is no microphone's colour."""
DIMENSIONS, RIDGE, NEIGHBOURS = 200, 0.1, 20
THRESHOLD = 0.4
"""Score from which on two clips count as one recording."""
PRECISION, RECALL = 0.63, 0.31
"""What `THRESHOLD` finds among other segments of ESC-50's recordings, each clip through one of six microphones and at
another gain, a fifth held out (three draws of 1,769 clips): share of the found clips whose sibling is from the same
upload (0.78 with uploads made together, whose numbers are less than 100 apart), and share of those with a sibling that
are found. The threshold was chosen on the same clips."""
READERS, EXAMPLES = 4, 20

Floats = NDArray[np.floating]


def fingerprint(log_mel: Floats) -> NDArray[np.float32]:
    """Statistics (7 * F,) of a log-mel (T, F) in nats that no gain and hardly a microphone changes."""
    heard = log_mel[log_mel.max(axis=1) > np.log(10 * FRONT_END.log_offset)]  # digital silence says nothing
    frames = heard if len(heard) >= 2 else log_mel
    low, middle, high = np.percentile(frames, [10, 50, 90], axis=0)
    levels = [level - gaussian_filter1d(level, SMOOTH, mode="nearest") for level in (low, frames.mean(axis=0), middle)]
    change = np.abs(np.diff(frames, axis=0)).mean(axis=0) if len(frames) > 1 else np.zeros_like(low)
    return np.concatenate([*levels, frames.std(axis=0), middle - low, high - middle, change]).astype(np.float32)


def listen(paths: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fingerprints (n, 3, D) of clips, first and second halves, and the numbers (n,) of those that can be read."""
    log_mel = LogMel(FRONT_END)

    def one(path: str) -> NDArray[np.float32] | None:
        try:
            mel = log_mel(load(open_clip(path), FRONT_END.sample_rate, seconds=FRONT_END.clip_seconds))
        except (AudioError, OSError):
            return None
        half = len(mel) // 2
        return np.stack([fingerprint(part) for part in (mel, mel[:half] if half else mel, mel[half:])])

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(one, paths))
    read = np.array([number for number, prints in enumerate(found) if prints is not None], np.int64)
    return np.stack([found[number] for number in read]) if len(read) else np.zeros((0, 3, 0), np.float32), read


def embed(prints: NDArray[np.float32]) -> Floats:
    """Unit vectors (n, d) in which clips of one recording lie close, from fingerprints (n, 3, D) as of `listen`."""
    whole, halves = prints[:, 0].astype(np.float64), prints[:, 1:].astype(np.float64)
    scale = np.maximum(whole.std(axis=0), 1e-6)
    z, difference = (whole - whole.mean(axis=0)) / scale, (halves[:, 0] - halves[:, 1]) / scale / 2
    within = difference.T @ difference / len(z)
    within += RIDGE * max(np.trace(within) / len(within), 1e-6) * np.eye(len(within))
    values, vectors = eigh(z.T @ z / len(z), within)
    kept = slice(-min(DIMENSIONS, max(2, len(z) // 5)), None)  # few clips teach few directions
    embedded = z @ vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1))
    return np.asarray(embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12))


def find_siblings(embedded: Floats, trained: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every clip that isn't `trained` (n,): the number of the trained one that sounds most like it, and a score.

    `embedded` are unit vectors (n, d). Score: twice the cosine less the mean cosine of either to its `NEIGHBOURS`
    nearest of all (cross-domain similarity local scaling, Conneau et al. 2018), so that clips which resemble everything
    are siblings of nothing. Neighbours are searched in blocks: n² products, but never n² memory.
    """
    from sklearn.neighbors import NearestNeighbors  # half a second, which every job would wait

    judged, known = np.flatnonzero(~trained), np.flatnonzero(trained)
    if not len(judged) or not len(known):
        return np.zeros(0, np.int64), np.zeros(0)
    vectors = embedded.astype(np.float32)
    among_known = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(vectors[known])
    distances, found = among_known.kneighbors(vectors[judged])
    nearest = known[found[:, 0]]
    asked, place = np.unique(np.concatenate([judged, nearest]), return_inverse=True)
    among_all = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    around = among_all.kneighbors(vectors[asked], n_neighbors=min(NEIGHBOURS + 1, len(vectors)))[0]
    crowd = (1 - around[:, 1:].mean(axis=1))[place]  # the nearest of all is the clip itself
    return nearest, 2 * (1 - distances[:, 0]) - crowd[: len(judged)] - crowd[len(judged) :]


def heard(rows: pa.Table) -> dict[str, Any]:
    """What is heard on both sides of rows whose splits are final, without looking at their groups.

    Keys: clips, unread; held_out, by split: clips (labelled ones that were read), heard_share (whose nearest clip of
    train or pool scores at least `THRESHOLD`) and estimate (heard_share * `PRECISION` / `RECALL`: the leak, where
    recordings are like those measured); examples, the surest 20 (clip_id, sibling, score).
    """
    judged = pc.and_(
        pc.or_(pc.equal(rows["split"], "val"), pc.starts_with(rows["split"], "test")), pc.is_valid(rows["scene_label"])
    )
    sides = rows.filter(pc.or_(judged, pc.is_in(rows["split"], value_set=pa.array(["train", "pool"]))))
    prints, read = listen(sides["path"].to_pylist())
    sides, unread = sides.take(read), len(sides) - len(read)
    trained = pc.is_in(sides["split"], value_set=pa.array(["train", "pool"])).to_numpy(zero_copy_only=False)
    if trained.all() or not trained.any():
        raise ValueError("nothing to listen for: no labelled clip of val or test…, or none of train and pool, was read")
    nearest, scores = find_siblings(embed(prints), trained)
    names, splits = sides["clip_id"].to_pylist(), np.array(sides["split"].to_pylist())[~trained]
    held_out = {}
    for split in sorted(set(splits.tolist())):
        share = float(np.mean(scores[splits == split] >= THRESHOLD))
        clips = int((splits == split).sum())
        held_out[split] = {"clips": clips, "heard_share": share, "estimate": min(1.0, share * PRECISION / RECALL)}
    judged_rows = np.flatnonzero(~trained)
    surest = [number for number in np.argsort(-scores)[:EXAMPLES] if scores[number] >= THRESHOLD]
    examples = [
        {"clip_id": names[judged_rows[number]], "sibling": names[nearest[number]], "score": float(scores[number])}
        for number in surest
    ]
    return {"clips": len(sides), "unread": unread, "held_out": held_out, "examples": examples}
