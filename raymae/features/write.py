"""Write shards of the feature store: plan them, read their clips, write and summarise."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymae.audio.clip_reader import Clip, ClipReader, SilentError
from raymae.audio.containers import storage_of
from raymae.audio.decode import AudioError, UnreachableError
from raymae.config import AudioConfig, redact, to_dict
from raymae.features.shard import BLANK, META, moments, seal
from raymae.features.store import ROW_GROUP, SHARDS, FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.retry import patiently


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


MIN_SHARD = 16


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

    Without `features` the shard holds all but the log-mels (`raymae.features.streaming`). ConnectionError where the
    storage of the clips goes on failing: a clip that can't be had for now is no bad file.
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
