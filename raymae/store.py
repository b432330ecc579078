"""The feature store: log-mels in Parquet shards, and the table of the clips beside them.

    artifacts/shards/<key>.parquet     clip_id, log_mel (T·F float16 as fixed-size binary), valid_frames, seconds
    artifacts/prepare/<key>/           manifest.json, clips.parquet (one row per stored clip, in shard order),
                                       quarantine.csv, done.json

A shard's key is a hash of the front end's settings and of its clips (name, size, time of change), so a shard is
computed once, whatever tables and labels it later serves. Fixed-size binary without compression or statistics reads
an order of magnitude faster than Arrow's list of half floats.
"""

from __future__ import annotations

import json
import mmap
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.artifacts import Folder, digest
from raymae.audio import AudioError, LogMel, fit_length, load
from raymae.config import AudioConfig, from_dict, to_dict
from raymae.order import Rows
from raymae.sources import open_clip

ROW_GROUP = 4
"""Rows that are read together: a shuffled epoch wants runs of a few rows, and reads whole groups."""
MIN_SHARD = 16
_META = b"raymae"
SHARDS = "artifacts/shards"


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: rows start … stop of the clip table."""

    name: str
    start: int
    stop: int


def shard_rows(clips: int, audio: AudioConfig, shard_mb: float) -> int:
    """Clips per shard: the largest power of two that fits `shard_mb` and leaves a small corpus about 16 shards.

    A power of two, so that a few more clips don't move the borders of all shards.
    """
    fits = max(1, int(shard_mb * 1e6 / (2 * audio.n_frames * audio.n_mels)))
    return max(MIN_SHARD, 1 << (min(fits, max(1, clips // 12)).bit_length() - 1))


def plan_shards(clips: pa.Table, audio: AudioConfig, shard_mb: float) -> list[ShardPlan]:
    """Cut a clip table into shards and name each by its content."""
    size = shard_rows(len(clips), audio, shard_mb)
    front_end = to_dict(audio)
    plans = []
    for start in range(0, len(clips), size):
        part = clips.slice(start, size)
        content = part.select(["clip_id", "size", "mtime"]).to_pydict()
        if 0 in content["mtime"]:  # a storage that tells no times: the same name elsewhere is another file
            content["path"] = part["path"].to_pylist()
        plans.append(ShardPlan(f"{digest([1, front_end, content])}.parquet", start, start + len(part)))
    return plans


class ClipReader:
    """Reads one clip after the other: path or address to float16 log-mel, within a time limit per file.

    Files are read in a thread of its own. A daemon, unlike those of an executor: one that is stuck and left behind
    doesn't keep the process from ending.
    """

    def __init__(self, audio: AudioConfig, timeout: float) -> None:
        self.audio, self.timeout = audio, timeout
        self._start()
        self.log_mel = LogMel(audio)

    def _start(self) -> None:
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._asked, self._found), daemon=True).start()

    def __del__(self) -> None:
        self._asked.put(None)

    def _read(self, path: str) -> tuple[NDArray[np.float16], int, float]:
        waveform = load(open_clip(path), self.audio.sample_rate, seconds=self.audio.clip_seconds)
        features, valid_frames = fit_length(self.log_mel(waveform), self.audio.n_frames, self.audio.silence)
        return features.astype(np.float16), valid_frames, len(waveform) / self.audio.sample_rate

    def __call__(self, path: str) -> tuple[NDArray[np.float16], int, float]:
        """Log-mel (T, F) float16, its frames before padding and the seconds read; AudioError says what is wrong."""
        self._asked.put((self._read, path))
        try:
            clip, error = self._found.get(timeout=self.timeout)
        except queue.Empty:
            self._asked.put(None)  # the stuck thread is left behind; the next file gets a new one
            self._start()
            raise AudioError(f"not decoded within {self.timeout:g} s") from None
        if isinstance(error, OSError):
            raise AudioError(error.strerror or str(error)) from None
        if error is not None:
            raise error
        return clip  # type: ignore[no-any-return]


def _serve(asked: queue.SimpleQueue[Any], found: queue.SimpleQueue[Any]) -> None:
    while (request := asked.get()) is not None:
        read, path = request
        del request  # or this thread would keep the reader alive while it waits
        try:
            found.put((read(path), None))
        except BaseException as error:  # handed to who asked, who raises it
            found.put((None, error))
        del read


def write_shard(target: Folder, name: str, clips: pa.Table, reader: ClipReader) -> dict[str, Any]:
    """Featurize `clips` (columns clip_id, path) into one shard and return its summary; bad files are listed in it."""
    kept: list[tuple[str, bytes, int, float]] = []
    quarantine = []
    for clip_id, path in zip(clips["clip_id"].to_pylist(), clips["path"].to_pylist(), strict=True):
        try:
            features, valid_frames, seconds = reader(path)
            kept.append((clip_id, features.tobytes(), valid_frames, seconds))
        except AudioError as error:
            quarantine.append({"clip_id": clip_id, "path": path, "reason": str(error)})
    audio = reader.audio
    summary = {"rows": len(kept), "seconds": sum(row[3] for row in kept), "quarantine": quarantine}
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("log_mel", pa.binary(2 * audio.n_frames * audio.n_mels)),
            ("valid_frames", pa.int32()),
            ("seconds", pa.float32()),
        ],
        metadata={_META: json.dumps({"summary": summary, "audio": to_dict(audio)}).encode()},
    )
    columns = list(zip(*kept, strict=True)) or [(), (), (), ()]
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_statistics=False
    )
    target.write_bytes(name, sink.getvalue().to_pybytes())
    return summary


def read_summary(target: Folder, name: str) -> dict[str, Any] | None:
    """The summary of a shard that stands, or None where it is missing or damaged."""
    if not target.exists(name):
        return None
    try:
        with target.open(name) as file:
            return dict(json.loads(pq.read_schema(file).metadata[_META])["summary"])
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None


@lru_cache(maxsize=64)
def _open_shard(url: str, name: str) -> tuple[pq.ParquetFile, mmap.mmap | None]:
    folder = Folder(url)
    if not folder.is_local:
        return pq.ParquetFile(folder.open(name)), None
    with open(folder.path(name), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped))), mapped


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading; picklable."""

    folder: Folder
    """The `prepare` artifact."""
    shards: Folder
    """Where the shards lie."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Shards, counts, shape and settings."""
        return dict(self.folder.read_json("manifest.json"))

    @cached_property
    def audio(self) -> AudioConfig:
        """The front end that made the features."""
        section: AudioConfig = from_dict(AudioConfig, self.manifest["audio"])
        return section

    @cached_property
    def clips(self) -> pa.Table:
        """One row per stored clip; the row's number is its position in the store."""
        with self.folder.open("clips.parquet") as file:
            return pq.read_table(file)

    @cached_property
    def _starts(self) -> Rows:
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]], dtype=np.int64)

    def __getstate__(self) -> dict[str, Folder]:
        return {"folder": self.folder, "shards": self.shards}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """The log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order asked for."""
        log_mel = np.empty((len(rows), self.audio.n_frames, self.audio.n_mels), np.float16)
        valid_frames = np.empty(len(rows), np.int32)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            log_mel[here], valid_frames[here] = self._read_shard(int(shard), rows[here] - self._starts[shard])
        return log_mel, valid_frames

    def _read_shard(self, shard: int, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        file, mapped = _open_shard(self.shards.url, self.manifest["shards"][shard]["name"])
        size = file.metadata.row_group(0).num_rows
        groups, index = np.unique(rows // size, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=["log_mel", "valid_frames"], use_threads=False)
        found = index * size + rows % size
        result = features_of(table["log_mel"], self.audio)[found], table["valid_frames"].to_numpy()[found]
        if mapped:
            mapped.madvise(mmap.MADV_DONTNEED)  # or this process would come to hold all that it has ever read
        return result


def features_of(column: pa.ChunkedArray, audio: AudioConfig) -> NDArray[np.float16]:
    """A log_mel column as (n, T, F), without a copy where it has one chunk."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    size = audio.n_frames * audio.n_mels
    flat = np.frombuffer(array.buffers()[1], np.float16, count=(array.offset + len(array)) * size)
    return flat.reshape(-1, audio.n_frames, audio.n_mels)[array.offset :]


def iterate(
    store: FeatureStore, rows: Rows, size: int
) -> Iterator[tuple[Rows, NDArray[np.float16], NDArray[np.int32]]]:
    """Read rows in order, `size` at a time: (rows, log_mel, valid_frames)."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, *store.read(part)
