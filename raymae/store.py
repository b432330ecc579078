"""The feature store: log-mels in Parquet shards, and the table of the clips beside them.

    artifacts/shards/<key>.parquet     clip_id, log_mel (T·F float16 as fixed-size binary), valid_frames, seconds
    artifacts/prepare/<key>/           manifest.json, clips.parquet (one row per stored clip, in shard order),
                                       quarantine.csv, done.json

A shard's key is a hash of the front end's settings and of its clips (name, size, time of change), so a shard is
computed once, whatever tables and labels it later serves. Fixed-size binary without compression or statistics reads
an order of magnitude faster than Arrow's list of half floats.

float16 is enough: on 40 ESC-10 clips at the default front end the largest rounding error is 0.001 and the
root-mean-square one 0.0002 of the log-mels' standard deviation; the statistics that the SVMs see move by 0.001 of
theirs, and a reconstruction that is exact but for the rounding has a loss of 0.0001, of 1 for a guess of the mean
(`tests/test_shards.py`).

Damage: every page has a checksum that reading verifies, which takes a core from 12.1 to 3.9 GB/s of groups of 4 clips
(0.06 ms more per ten-second clip, where a clip's way into a batch takes milliseconds). The whole file has one too
(`raymae.shards`), the manifest holds its size, and `data.verify` checks every byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.audio.clip_reader import Clip, ClipReader, SilentError
from raymae.audio.containers import storage_of
from raymae.audio.decode import AudioError, UnreachableError
from raymae.config import AudioConfig, from_dict, redact, to_dict
from raymae.datasets.rows import Rows
from raymae.shards import BLANK, META, explain, moments, seal
from raymae.storage.folder import Folder
from raymae.storage.retry import patiently

ROW_GROUP = 4
"""Rows that are read together: a shuffled epoch wants runs of a few rows, and reads whole groups."""
MIN_SHARD = 16
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
    front_end = json.dumps([2, to_dict(audio)], sort_keys=True).encode()
    plans = []
    for start in range(0, len(clips), size):
        part = clips.slice(start, size)
        columns = [part["clip_id"], part["size"], part["mtime"]]
        if pc.any(pc.equal(part["mtime"], 0)).as_py():
            columns.append(part["path"])  # a storage that tells no times: the same name elsewhere is another file
        name = hashlib.sha256(front_end)
        for column in columns:
            hash_column(name, column)
        plans.append(ShardPlan(f"{name.hexdigest()[:16]}.parquet", start, start + len(part)))
    return plans


def hash_column(state: Any, column: pa.ChunkedArray) -> None:
    """Add strings (lengths and bytes) or numbers to a hash, without an object for each."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = pa.concat_arrays(column.cast(pa.large_string()).chunks)
        offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
        state.update(np.diff(offsets).astype("<i8").tobytes())
        text = values.buffers()[2]
        if text is not None:
            state.update(memoryview(text)[offsets[0] : offsets[-1]])
    else:
        numbers = column.to_numpy()
        state.update(numbers.astype("<f8" if numbers.dtype.kind == "f" else "<i8").tobytes())


def read_all(reader: ClipReader, paths: Sequence[str]) -> Iterator[tuple[int, Clip | AudioError]]:
    """The clip at each address, or what is wrong with it, with its number.

    A clip whose storage is silent is asked for again after all others: if that storage gave others, its address may be
    dead. ConnectionError where a storage goes on failing, or is silent twice running.
    """
    silent: set[str] = set()
    again: list[int] = []
    for row in itertools.chain(range(len(paths)), again):  # grows while it is gone through
        storage, first = storage_of(paths[row]), row not in again
        try:
            answer: Clip | AudioError = patiently(partial(reader, paths[row]), "a clip's storage")
        except AudioError as error:
            answer = error
        if isinstance(answer, UnreachableError) or (isinstance(answer, SilentError) and first and storage in silent):
            raise ConnectionError(
                f"{redact(paths[row])} can't be reached ({answer}): the same command goes on from the shards that "
                "stand; take a clip that stays so out of the table"
            )
        if isinstance(answer, SilentError) and first:
            silent.add(storage)
            again.append(row)
            continue
        silent.discard(storage)
        yield row, answer


def write_shard(
    target: Folder, name: str, clips: pa.Table, reader: ClipReader, compression: str = "none", features: bool = True
) -> dict[str, Any]:
    """Featurize `clips` (columns clip_id, path) into one shard and return its summary; bad files are listed in it.

    Without `features` the shard holds all but the log-mels (`raymae.streaming`). ConnectionError where the storage of
    the clips goes on failing: a clip that can't be had for now is no bad file.
    """
    kept: dict[int, tuple[str, int, float]] = {}
    log_mels: dict[int, bytes] = {}
    found: dict[int, tuple[float, float]] = {}
    bad: dict[int, str] = {}
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    for row, answer in read_all(reader, paths):
        if isinstance(answer, AudioError):
            bad[row] = str(answer)
            continue
        log_mel, valid_frames, seconds = answer
        kept[row], found[row] = (ids[row], valid_frames, seconds), moments(log_mel, valid_frames)
        if features:
            log_mels[row] = log_mel.tobytes()
    rows = sorted(kept)
    quarantine = [{"clip_id": ids[row], "path": paths[row], "reason": bad[row]} for row in sorted(bad)]
    audio = reader.audio
    summary = {
        "rows": len(rows),
        "seconds": sum(kept[row][2] for row in rows),
        "quarantine": quarantine,
        "compression": compression,
        "crc32": BLANK,
        "clips": {
            "frames": [kept[row][1] for row in rows],
            "seconds": [kept[row][2] for row in rows],
            "mean": [float(f"{found[row][0]:.8g}") for row in rows],
            "mean_square": [float(f"{found[row][1]:.8g}") for row in rows],
        },
    }
    clip_ids, frames, lengths = zip(*(kept[row] for row in rows), strict=True) if rows else ((), (), ())
    columns = {"clip_id": pa.array(clip_ids, pa.string())}
    if features:
        columns["log_mel"] = pa.array([log_mels[row] for row in rows], pa.binary(2 * audio.n_frames * audio.n_mels))
    columns |= {"valid_frames": pa.array(frames, pa.int32()), "seconds": pa.array(lengths, pa.float32())}
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    plain = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, table.schema, compression=compression, **plain) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({META: json.dumps({"audio": to_dict(audio), "summary": summary}).encode()})
    content, summary["crc32"] = seal(sink.getvalue())
    target.write_bytes(name, content)
    return summary | {"size": len(content)}


@lru_cache(maxsize=64)
def _open_shard(url: str, name: str) -> tuple[pq.ParquetFile, mmap.mmap | None]:
    folder = Folder(url)
    if not folder.is_local:
        return pq.ParquetFile(folder.open(name), page_checksum_verification=True), None
    with open(folder.path(name), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source = pa.BufferReader(pa.py_buffer(mapped))
    return pq.ParquetFile(source, page_checksum_verification=True), mapped


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
        return self.folder.read_table("clips.parquet")

    @cached_property
    def clip_ids(self) -> pa.LargeStringArray:
        """The clips' ids in one piece: taking some from a column of many chunks would copy them all."""
        return pa.concat_arrays(self.clips["clip_id"].cast(pa.large_string()).chunks)

    @cached_property
    def _starts(self) -> Rows:
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """The log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order asked for.

        ValueError names a shard that is missing or damaged.
        """
        log_mel = np.empty((len(rows), self.audio.n_frames, self.audio.n_mels), np.float16)
        valid_frames = np.empty(len(rows), np.int32)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            try:
                log_mel[here], valid_frames[here] = self._read_shard(int(shard), rows[here] - self._starts[shard])
            except (OSError, pa.ArrowException, ValueError, IndexError) as error:
                _open_shard.cache_clear()  # what is open is no longer what will stand there
                reason = explain(self.shards, self.manifest["shards"][shard]["name"], error)
                if reason is error:
                    raise
                raise reason from error
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
