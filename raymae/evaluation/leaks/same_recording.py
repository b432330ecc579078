"""Find same-recording pairs from the audio: clips of one recording that the table doesn't group together.

Clips of one recording share the fine structure of their background, whatever the gain and the microphone. A linear
discriminant analysis is fitted to the table itself, without labels: the two halves of a clip are one recording, so
directions in which halves differ get little weight. A held-out clip is compared with the clips of its own classes and
with unlabelled ones. What share of clips really has a sibling is estimated in `raymae.evaluation.leaks.pairs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csr_array

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
DIMENSIONS, RIDGE, NEIGHBOURS = 200, 1.0, 20
"""Most directions; ridge of the scatter within recordings, in units of its mean variance: with less, directions are
fitted to the noise of tables of fewer than 400 clips, in which unrelated clips then match."""
THRESHOLD = 0.5
"""Smallest score at which two clips count as one recording; less where unrelated clips of the table score lower."""
PRECISION, RECALL = 0.75, 0.29
"""Precision and recall of `THRESHOLD` on other segments of ESC-50's recordings, each clip through one of six
microphones and at another gain, a fifth held out (three draws of 1,769 clips): share of the found clips whose sibling
is from the same upload (0.92 when counting uploads made together, whose numbers are less than 100 apart), and share of
the clips with a sibling that are found. Between folds, which share no upload, 1.2 % of the clips are found."""
READERS, BLOCK = 4, 1024

Floats = NDArray[np.floating]
Numbers = NDArray[np.integer]


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
    kept = slice(-min(DIMENSIONS, max(2, len(z) // 3)), None)  # fewer directions for few clips
    embedded = z @ vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1))
    return np.asarray(embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12))


def find_siblings(
    embedded: Floats, asked: Numbers, known: Numbers, classes: csr_array, barred: Numbers | None = None
) -> tuple[Numbers, NDArray[np.float64]]:
    """For every clip of `asked` (m,): the number of the most similar clip of `known` (k,), and the pair's score.

    Only clips that share a class are compared, and unlabelled ones of `known` with all. -1 and -inf where there is
    none. `embedded` are unit vectors (n, d), `classes` (n, C) is 1 where a clip has a class; with `barred` (n,), clips
    of the same number there are not compared. The score is twice the cosine minus the mean cosine of either clip to its
    `NEIGHBOURS` nearest of all (cross-domain similarity local scaling, Conneau et al. 2018), so that a clip that
    resembles many clips scores low. Neighbours are searched in blocks: n² products without n² memory.
    """
    vectors = embedded.astype(np.float32)
    nearest, cosine = np.full(len(asked), -1, np.int64), np.full(len(asked), -np.inf)
    for mine, theirs in comparable(asked, known, classes):
        for start in range(0, len(mine), BLOCK):
            some = mine[start : start + BLOCK]
            found = vectors[asked[some]] @ vectors[theirs].T
            found[asked[some][:, None] == theirs] = -np.inf
            if barred is not None:
                found[barred[asked[some]][:, None] == barred[theirs]] = -np.inf
            best = found.argmax(axis=1)
            value = found[np.arange(len(some)), best]
            better = value > cosine[some]
            nearest[some[better]], cosine[some[better]] = theirs[best[better]], value[better]
    paired = nearest >= 0
    crowd = _crowd(vectors, np.concatenate([asked[paired], nearest[paired]])).reshape(2, -1)
    cosine[paired] = 2 * cosine[paired] - crowd.sum(axis=0)
    return nearest, cosine


def comparable(asked: Numbers, known: Numbers, classes: csr_array) -> Iterator[tuple[Numbers, Numbers]]:
    """Places in `asked`, and the clips of `known` to compare them with: by class, then the unlabelled ones."""
    mine, theirs = classes[asked].tocsc(), classes[known].tocsc()
    for number in range(classes.shape[1]):
        pair = mine[:, [number]].nonzero()[0], known[theirs[:, [number]].nonzero()[0]]
        if len(pair[0]) and len(pair[1]):
            yield pair
    unlabelled = known[np.diff(classes[known].indptr) == 0]
    if len(unlabelled):
        yield np.arange(len(asked)), unlabelled


def _crowd(vectors: NDArray[np.float32], asked: Numbers) -> Floats:
    """The mean cosine (m,) of every clip of `asked` (m,) to its `NEIGHBOURS` nearest of all others."""
    numbers, place = np.unique(asked, return_inverse=True)
    count = min(NEIGHBOURS, len(vectors) - 1)
    found = np.zeros(len(numbers))
    for start in range(0, len(numbers), BLOCK):
        some = numbers[start : start + BLOCK]
        cosines = vectors[some] @ vectors.T
        cosines[np.arange(len(some)), some] = -np.inf
        found[start : start + BLOCK] = np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1)
    return found[place]
