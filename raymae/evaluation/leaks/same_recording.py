"""Find same-recording pairs from the audio: clips of one recording that the table doesn't group together.

Clips of one recording share the fine structure of their background, whatever the gain and the microphone. A linear
discriminant analysis is fitted to the table itself, without labels: the two halves of a clip are one recording, so
directions in which halves differ get little weight.
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

from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.audio.sources import open_clip
from raymae.config import AudioConfig

FRONT_END = AudioConfig(
    sample_rate=16_000, n_fft=2048, win_length=2048, hop_length=640, n_mels=128, f_min=50.0, pre_emphasis=0.0,
    log_offset=1e-9, norm_mean=0.0, norm_scale=1.0,
)  # fmt: skip
"""Natural logarithms of power in narrow bands, 25 frames per second."""
SMOOTH = 8.0
"""Standard deviation, in bands, of the smoothing subtracted from a spectrum: removes a microphone's response."""
DIMENSIONS, RIDGE, NEIGHBOURS = 200, 0.1, 20
THRESHOLD = 0.4
"""Smallest score at which two clips count as one recording."""
PRECISION, RECALL = 0.63, 0.31
"""Precision and recall of `THRESHOLD` on other segments of ESC-50's recordings, each clip through one of six
microphones and at another gain, a fifth held out (three draws of 1,769 clips): share of the found clips whose sibling
is from the same upload (0.78 when counting uploads made together, whose numbers are less than 100 apart), and share of
the clips with a sibling that are found. The threshold was chosen on the same clips."""
READERS, EXAMPLES = 4, 20

Floats = NDArray[np.floating]


def fingerprint(log_mel: Floats) -> NDArray[np.float32]:
    """Statistics (7 * F,) of a log-mel (T, F) in nats, independent of gain and nearly so of the microphone."""
    audible = log_mel[log_mel.max(axis=1) > np.log(10 * FRONT_END.log_offset)]  # without digital silence
    frames = audible if len(audible) >= 2 else log_mel
    low, middle, high = np.percentile(frames, [10, 50, 90], axis=0)
    levels = [level - gaussian_filter1d(level, SMOOTH, mode="nearest") for level in (low, frames.mean(axis=0), middle)]
    change = np.abs(np.diff(frames, axis=0)).mean(axis=0) if len(frames) > 1 else np.zeros_like(low)
    return np.concatenate([*levels, frames.std(axis=0), middle - low, high - middle, change]).astype(np.float32)


def fingerprints(paths: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fingerprints (n, 3, D) of the clips that can be read (whole, first half, second half), and their numbers (n,)."""
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
    """Unit vectors (n, d), close for clips of one recording, from the result (n, 3, D) of `fingerprints`."""
    whole, halves = prints[:, 0].astype(np.float64), prints[:, 1:].astype(np.float64)
    scale = np.maximum(whole.std(axis=0), 1e-6)
    z, difference = (whole - whole.mean(axis=0)) / scale, (halves[:, 0] - halves[:, 1]) / scale / 2
    within = difference.T @ difference / len(z)
    within += RIDGE * max(np.trace(within) / len(within), 1e-6) * np.eye(len(within))
    values, vectors = eigh(z.T @ z / len(z), within)
    kept = slice(-min(DIMENSIONS, max(2, len(z) // 5)), None)  # fewer directions for few clips
    embedded = z @ vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1))
    return np.asarray(embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12))


def find_siblings(embedded: Floats, trained: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every clip that isn't `trained` (n,): the number of the most similar trained clip, and the pair's score.

    `embedded` are unit vectors (n, d). The score is twice the cosine minus the mean cosine of either clip to its
    `NEIGHBOURS` nearest of all (cross-domain similarity local scaling, Conneau et al. 2018), so that a clip that
    resembles many clips scores low. Neighbours are searched in blocks: n² products without n² memory.
    """
    from sklearn.neighbors import NearestNeighbors  # takes half a second to import, which other jobs don't need

    tested, known = np.flatnonzero(~trained), np.flatnonzero(trained)
    if not len(tested) or not len(known):
        return np.zeros(0, np.int64), np.zeros(0)
    vectors = embedded.astype(np.float32)
    among_known = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(vectors[known])
    distances, found = among_known.kneighbors(vectors[tested])
    nearest = known[found[:, 0]]
    asked, place = np.unique(np.concatenate([tested, nearest]), return_inverse=True)
    among_all = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    around = among_all.kneighbors(vectors[asked], n_neighbors=min(NEIGHBOURS + 1, len(vectors)))[0]
    crowd = (1 - around[:, 1:].mean(axis=1))[place]  # the nearest of all is the clip itself
    return nearest, 2 * (1 - distances[:, 0]) - crowd[: len(tested)] - crowd[len(tested) :]


def find_pairs(rows: pa.Table) -> dict[str, Any]:
    """Same-recording pairs across the final splits of `rows`, regardless of their groups.

    Keys: clips, unread; held_out, by split: clips (labelled ones that were read), paired_share (share whose most
    similar clip of train or pool scores at least `THRESHOLD`) and estimate (paired_share * `PRECISION` / `RECALL`: the
    leak, for recordings like those measured); examples, the 20 with the highest scores (clip_id, sibling, score).
    """
    tested = pc.and_(
        pc.or_(pc.equal(rows["split"], "val"), pc.starts_with(rows["split"], "test")), pc.is_valid(rows["scene_label"])
    )
    compared = rows.filter(pc.or_(tested, pc.is_in(rows["split"], value_set=pa.array(["train", "pool"]))))
    prints, read = fingerprints(compared["path"].to_pylist())
    compared, unread = compared.take(read), len(compared) - len(read)
    trained = pc.is_in(compared["split"], value_set=pa.array(["train", "pool"])).to_numpy(zero_copy_only=False)
    if trained.all() or not trained.any():
        raise ValueError("nothing to compare: no labelled clip of val or test…, or none of train and pool, was read")
    nearest, scores = find_siblings(embed(prints), trained)
    names, splits = compared["clip_id"].to_pylist(), np.array(compared["split"].to_pylist())[~trained]
    held_out = {}
    for split in sorted(set(splits.tolist())):
        share = float(np.mean(scores[splits == split] >= THRESHOLD))
        clips = int((splits == split).sum())
        held_out[split] = {"clips": clips, "paired_share": share, "estimate": min(1.0, share * PRECISION / RECALL)}
    tested_rows = np.flatnonzero(~trained)
    best = [number for number in np.argsort(-scores)[:EXAMPLES] if scores[number] >= THRESHOLD]
    examples = [
        {"clip_id": names[tested_rows[number]], "sibling": names[nearest[number]], "score": float(scores[number])}
        for number in best
    ]
    return {"clips": len(compared), "unread": unread, "held_out": held_out, "examples": examples}
