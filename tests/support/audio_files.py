"""Small synthetic recordings, clip tables and feature stores for tests."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile as sf

from raymae.audio.clip_reader import ClipReader
from raymae.config import AudioConfig, to_dict
from raymae.features.pages import PAGES, pages_table
from raymae.features.store import ROW_GROUP, SHARDS, FeatureStore
from raymae.features.write import plan_shards, write_shard
from raymae.storage.folder import Folder

TINY_AUDIO = AudioConfig(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=32, clip_seconds=0.64)


def write_tone(path: Path, hertz: float, seconds: float = 0.64, rate: int = 8000, seed: int = 0) -> None:
    """Write a tone in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.2 * np.sin(2 * np.pi * hertz * time) + 0.02 * rng.normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, rate, subtype="PCM_16")


def encoded(seed: int = 0, n_samples: int = 5120, rate: int = 8000, **kind: str) -> bytes:
    """An encoded file of noise; `kind` is soundfile's format and subtype."""
    buffer = io.BytesIO()
    wave = 0.1 * np.random.default_rng(seed).standard_normal(n_samples)
    sf.write(buffer, wave, rate, **({"format": "WAV", "subtype": "PCM_16"} | kind))
    return buffer.getvalue()


def tar(members: dict[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tar_format) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive.getvalue()


def write_clips(folder: Path, count: int) -> pa.Table:
    """Write recordings of two classes (low and high tones); their clip table: train half labelled, val, test, pool."""
    rows = []
    for index in range(count):
        high = index % 2
        path = folder / f"clip{index:03d}.wav"
        write_tone(path, (1500 if high else 300) + 7 * index, seed=index)
        split = ("train", "train", "train", "train", "pool", "pool", "val", "val", "test_a", "test_a")[index % 10]
        hidden = split == "pool" or (split == "train" and index % 20 >= 10)
        rows.append(
            {
                "clip_id": path.name,
                "path": str(path),
                "scene_label": None if hidden else ("high" if high else "low"),
                "city": "x",
                "device": "a" if index % 4 < 2 else "b",
                "group": f"g{index}",
                "split": split,
                "source": "pool" if split == "pool" else "own",
                "weight": 1.0,
                "size": path.stat().st_size,
                "mtime": path.stat().st_mtime,
            }
        )
    schema = pa.schema(
        [
            (name, pa.string())
            for name in ("clip_id", "path", "scene_label", "city", "device", "group", "split", "source")
        ]
        + [("weight", pa.float64()), ("size", pa.int64()), ("mtime", pa.float64())]
    )
    return pa.Table.from_pylist(rows, schema)


def write_table(folder: Path, clips: pa.Table) -> Path:
    """Write a user's metadata table of some clips."""
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "scene_label", "device", "group", "split"])
        for row in clips.to_pylist():
            writer.writerow([row["clip_id"], row["scene_label"], row["device"], row["group"], row["split"]])
    return folder / "metadata.csv"


def make_store(storage: Path, clips: pa.Table, audio: AudioConfig = TINY_AUDIO, shard_mb: float = 0.1) -> FeatureStore:
    """Make a finished feature store of a clip table, without Ray."""
    root = Folder(str(storage))
    store = FeatureStore(root / "artifacts/prepare/test", root / SHARDS)
    reader = ClipReader(audio, 10)
    shards, summaries = [], []
    for plan in plan_shards(clips, audio, shard_mb):
        summary = write_shard(store.shards, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
        shards.append({"name": plan.name, "rows": summary["rows"], "size": summary["size"]})
        summaries.append(summary)
    store.folder.write_table("clips.parquet", clips)
    pages = pages_table(summaries, ROW_GROUP)
    assert pages is not None
    store.folder.write_table(PAGES, pages)
    store.folder.write_json("manifest.json", {"audio": to_dict(audio), "shards": shards})
    store.folder.finish({})
    return store


def damaged_copy(store: FeatureStore, folder: Path) -> FeatureStore:
    """A copy of a store with a flipped byte in each shard."""
    copy = FeatureStore(store.folder, Folder(str(folder / SHARDS)))
    for name in store.shards.names():
        content = bytearray(store.shards.read_bytes(name))
        content[len(content) // 3] ^= 255
        copy.shards.write_bytes(name, bytes(content))
    return copy


def clip_table(paths: list[Path], names: list[str]) -> pa.Table:
    """The clip table of some files, all in the pool; size -1 for missing ones."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return pa.table(
        {
            "clip_id": names,
            "path": [str(path) for path in paths],
            "size": [-1 if one is None else one.st_size for one in stats],
            "mtime": [0.0 if one is None else one.st_mtime for one in stats],
            "split": ["pool"] * len(names),
        }
    )
