"""Generate recordings and feature stores for benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from raymae.audio.clip_reader import ClipReader
from raymae.config import AudioConfig, to_dict
from raymae.storage.folder import Folder
from raymae.store import SHARDS, FeatureStore, plan_shards, write_shard

SAMPLE_RATE = 44_100


def recording(seconds: float, seed: int, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A swelling tone in noise (n_samples,), within [-1, 1]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    swell = np.sin(np.pi * time * rng.uniform(0.2, 2)) ** 2
    wave = 0.2 * swell * np.sin(2 * np.pi * rng.uniform(80, 8000) * time) + 0.05 * rng.standard_normal(len(time))
    return np.clip(wave, -1, 1).astype(np.float32)


def write_recording(path: Path, seconds: float, seed: int) -> None:
    """Write one recording; the suffix says whether as WAV or as FLAC."""
    soundfile.write(path, recording(seconds, seed), SAMPLE_RATE, subtype="PCM_24")


def write_corpus(folder: Path, clips: int, distinct: int, seconds: float) -> pa.Table:
    """WAV files under `clips` paths, hard links to `distinct` recordings, and their clip table."""
    paths = [folder / f"{index:05d}.wav" for index in range(clips)]
    for index, path in enumerate(paths):
        if index < distinct:
            write_recording(path, seconds, seed=index)
        else:
            os.link(paths[index % distinct], path)
    return clip_table(paths)


def clip_table(paths: list[Path]) -> pa.Table:
    """The clip table of some files, all of them for pre-training."""
    stats = [path.stat() for path in paths]
    return _pool([str(path) for path in paths], [stat.st_size for stat in stats], [stat.st_mtime for stat in stats])


def noise_clips(count: int) -> pa.Table:
    """A clip table without files: the path of a clip is its number."""
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


def write_store(
    folder: Folder, clips: pa.Table, audio: AudioConfig, reader: ClipReader, shard_mb: float
) -> FeatureStore:
    """The feature store of a clip table, made in this process; ValueError where a file can't be read."""
    store = FeatureStore(folder / "prepare", folder / SHARDS)
    shards = []
    for plan in plan_shards(clips, audio, shard_mb):
        summary = write_shard(store.shards, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
        for bad in summary["quarantine"]:
            raise ValueError(f"{bad['path']} can't be read: {bad['reason']}")
        shards.append({"name": plan.name, "rows": summary["rows"]})
    store.folder.write_table("clips.parquet", clips)
    store.folder.write_json("manifest.json", {"audio": to_dict(audio), "shards": shards})
    return store
