"""Generated recordings (tones in noise) and their clip tables, for benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SAMPLE_RATE = 44_100


def recording(seconds: float, seed: int, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """An amplitude-modulated tone in noise (n_samples,), in [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    swell = np.sin(np.pi * time * rng.uniform(0.2, 2)) ** 2
    wave = 0.2 * swell * np.sin(2 * np.pi * rng.uniform(80, 8000) * time) + 0.05 * rng.standard_normal(len(time))
    return np.clip(wave, -1, 1).astype(np.float32)


def write_recording(path: Path, seconds: float, seed: int) -> None:
    """Write one recording, as WAV or FLAC by its suffix."""
    import soundfile

    soundfile.write(path, recording(seconds, seed), SAMPLE_RATE, subtype="PCM_24")


def write_corpus(folder: Path, clips: int, distinct: int, seconds: float) -> pa.Table:
    """Write `distinct` WAV files, hard-linked under `clips` paths, and return their clip table."""
    paths = [folder / f"{index:05d}.wav" for index in range(clips)]
    for index, path in enumerate(paths):
        if index < distinct:
            write_recording(path, seconds, seed=index)
        else:
            os.link(paths[index % distinct], path)
    return clip_table(paths)


def clip_table(paths: list[Path]) -> pa.Table:
    """The clip table of some files, all in split pool."""
    stats = [path.stat() for path in paths]
    return _pool([str(path) for path in paths], [stat.st_size for stat in stats], [stat.st_mtime for stat in stats])


def noise_clips(count: int) -> pa.Table:
    """A clip table without files; the path of a clip is its number."""
    return _pool([str(index) for index in range(count)], [0] * count, [0.0] * count)


def _pool(paths: list[str], sizes: list[int], times: list[float]) -> pa.Table:
    return pa.table(
        {
            "clip_id": paths,
            "path": paths,
            "split": ["pool"] * len(paths),
            "source": ["pool"] * len(paths),
            "weight": [1.0] * len(paths),
            "size": sizes,
            "mtime": times,
        }
    )
