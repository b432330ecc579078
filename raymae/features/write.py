"""Plan and write shards of the feature store."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymae.audio.containers import storage_of
from raymae.audio.errors import AudioError, NoAnswerError, SilentError, TimeLimitError, UnreachableError
from raymae.audio.spans import WHOLE, Clip, Span, SpanReader
from raymae.config import AudioConfig, redact
from raymae.datasets.rows import state_columns
from raymae.features.pages import PAGES, page_starts, pages_table
from raymae.features.shard import BLANK, META, SILENT, moments, seal
from raymae.features.store import ROW_GROUP, SHARDS, FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.retry import with_retries


def write_store(
    folder: Folder, clips: pa.Table, audio: AudioConfig, reader: SpanReader, shard_mb: float
) -> FeatureStore:
    """Write the feature store of a clip table in this process; ValueError if a file can't be read.

    Silent clips are left out.
    """
    store = FeatureStore(folder / "prepare", folder / SHARDS)
    shards, pages = [], []
    silent: list[str] = []
    for plan in plan_shards(clips, audio, shard_mb):
        summary = write_shard(store.shards, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
        for bad in summary["quarantine"]:
            if bad.get(SILENT):
                silent.append(bad["clip_id"])
                continue
            raise ValueError(f"{bad['path']} can't be read: {bad['reason']}")
        shards.append({"name": plan.name, "rows": summary["rows"]})
        pages.append(summary)
    kept = pc.invert(pc.is_in(clips["clip_id"], value_set=pa.array(silent, pa.string())))
    store.folder.write_table("clips.parquet", clips.filter(kept))
    if (table := pages_table(pages, ROW_GROUP)) is not None:
        store.folder.write_table(PAGES, table)
    store.folder.write_json("manifest.json", {"audio": audio.front_end(), "shards": shards})
    return store


MIN_SHARD = 16
"""Fewest clips per shard."""


@dataclass(frozen=True)
class ShardPlan:
    """A shard to write: its name and its rows start … stop of the clip table."""

    name: str
    start: int
    stop: int


def shard_rows(clips: int, audio: AudioConfig, shard_mb: float) -> int:
    """Clips per shard: the largest power of two that fits `shard_mb` and leaves a small corpus about 16 shards.

    A power of two, so that adding a few clips doesn't move the boundaries of all shards.
    """
    fits = max(1, int(shard_mb * 1e6 / (2 * audio.n_frames * audio.n_mels)))
    return max(MIN_SHARD, 1 << (min(fits, max(1, clips // 12)).bit_length() - 1))


def plan_shards(clips: pa.Table, audio: AudioConfig, shard_mb: float) -> list[ShardPlan]:
    """Divide a clip table into shards, each named by a hash of its content."""
    size = shard_rows(len(clips), audio, shard_mb)
    front_end = json.dumps([6, audio.front_end()], sort_keys=True).encode()
    plans = []
    for start in range(0, len(clips), size):
        part = clips.slice(start, size)
        columns = [part[name] for name in state_columns(part)]
        if pc.any(pc.equal(part["mtime"], 0)).as_py():
            columns.append(part["path"])  # without change times, the same name elsewhere is another file
        name = hashlib.sha256(front_end)
        for column in columns:
            hash_column(name, column)
        plans.append(ShardPlan(f"{name.hexdigest()[:16]}.parquet", start, start + len(part)))
    return plans


def hash_column(state: Any, column: pa.ChunkedArray) -> None:
    """Add a column of strings (lengths and bytes) or numbers to a hash without converting it to Python objects."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.fill_null(column, "")
        values = pa.concat_arrays(column.cast(pa.large_string()).chunks)
        offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
        state.update(np.diff(offsets).astype("<i8").tobytes())
        text = values.buffers()[2]
        if text is not None:
            state.update(memoryview(text)[offsets[0] : offsets[-1]])
    else:
        numbers = column.to_numpy()
        state.update(numbers.astype("<f8" if numbers.dtype.kind == "f" else "<i8").tobytes())


def read_all(reader: SpanReader, clips: pa.Table) -> Iterator[tuple[int, Clip | AudioError]]:
    """Read clips (columns path and, for parts of a recording, start_seconds and end_seconds).

    Yields the number and the clip or its AudioError. Neighbours that are parts of one recording are read in one go. A
    recording whose storage doesn't answer is retried after all others: if that storage returned others in the meantime,
    only its address is bad.

    Raises:
        ConnectionError: a storage still fails after retries, or doesn't answer for two recordings in a row.
    """
    paths, spans = clips["path"].to_pylist(), spans_of(clips)
    silent: set[str] = set()
    again: list[range] = []
    for run in itertools.chain(runs_of(paths), again):  # `again` grows during the loop
        path = paths[run.start]
        storage, first = storage_of(path), run not in again
        answers = read_run(reader, path, [spans[row] for row in run])
        unanswered = isinstance(answers[-1], NoAnswerError)
        if isinstance(answers[-1], UnreachableError) or (unanswered and first and storage in silent):
            raise ConnectionError(
                f"{redact(path)} can't be reached ({answers[-1]}): run the same command again, which resumes from the "
                "finished shards; remove a clip that stays unreachable from the table"
            )
        if unanswered and first:
            silent.add(storage)
            again.append(run)
            continue
        silent.discard(storage)
        yield from zip(run, answers, strict=True)


def read_run(reader: SpanReader, path: str, spans: Sequence[Span]) -> list[Clip | AudioError]:
    """Parts of one recording, each a clip or its error; retried while its storage fails temporarily."""

    def read() -> list[Clip | AudioError]:
        answers = list(reader.each(path, spans))
        if isinstance(answers[-1], UnreachableError):
            raise answers[-1]
        return answers

    try:
        return with_retries(read, "a clip's storage")
    except UnreachableError as error:
        return [error] * len(spans)


def spans_of(clips: pa.Table) -> list[Span]:
    """The part of its recording that each clip is."""
    if "start_seconds" not in clips.column_names:
        return [WHOLE] * len(clips)
    return list(zip(clips["start_seconds"].to_pylist(), clips["end_seconds"].to_pylist(), strict=True))


def runs_of(paths: Sequence[str]) -> Iterator[range]:
    """The runs of neighbouring rows with the same path."""
    start = 0
    for row in range(1, len(paths) + 1):
        if row == len(paths) or paths[row] != paths[start]:
            yield range(start, row)
            start = row


@dataclass(frozen=True)
class _Row:
    """A clip of a shard: its features, or the reason why it is quarantined."""

    number: int
    """Row of the clip in the shard's part of the clip table."""
    clip_id: str
    path: str
    reason: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """When a later run asks for it again (`raymae.features.shard.asks_again`), or that it is silent."""
    log_mel: bytes = b""
    """(T, F) float16; empty without features."""
    valid_frames: int = 0
    seconds: float = 0.0
    mean: float = 0.0
    mean_square: float = 0.0


def write_shard(
    target: Folder, name: str, clips: pa.Table, reader: SpanReader, compression: str = "none", features: bool = True
) -> dict[str, Any]:
    """Featurize `clips` (columns clip_id, path) into one shard and return its summary, which lists the bad files.

    Without `features` the shard holds all but the log-mels (`raymae.features.streaming`).

    Raises:
        ConnectionError: the clips' storage still fails after retries; a clip that is unreachable for now is not
            quarantined.
    """
    rows = _read_rows(clips, reader, features)
    kept = [row for row in rows if row.reason is None]
    summary = _summary(rows, kept, compression)
    audio = reader.audio
    if features and compression == "none":
        summary["sums"] = [zlib.crc32(row.log_mel) for row in kept]
    columns = {"clip_id": pa.array([row.clip_id for row in kept], pa.string())}
    if features:
        columns["log_mel"] = pa.array([row.log_mel for row in kept], pa.binary(2 * audio.n_frames * audio.n_mels))
    columns["valid_frames"] = pa.array([row.valid_frames for row in kept], pa.int32())
    columns["seconds"] = pa.array([row.seconds for row in kept], pa.float32())
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    plain = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with pq.ParquetWriter(sink, table.schema, compression=compression, **plain) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({META: json.dumps({"audio": audio.front_end(), "summary": summary}).encode()})
    content, summary["crc32"] = seal(sink.getvalue())
    target.write_bytes(name, content)
    if summary.get("sums"):
        metadata = pq.read_metadata(pa.BufferReader(content))
        summary["starts"] = page_starts(metadata, 2 * audio.n_frames * audio.n_mels)
    return summary | {"size": len(content)}


def _read_rows(clips: pa.Table, reader: SpanReader, features: bool) -> list[_Row]:
    """Read the clips of a shard; a row for each, in the table's order."""
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    rows = []
    for number, answer in read_all(reader, clips):
        clip_id, path = ids[number], paths[number]
        if isinstance(answer, AudioError):
            notes: dict[str, Any] = {"passing": True} if isinstance(answer, NoAnswerError) else {}
            notes |= {"limit": reader.timeout} if isinstance(answer, TimeLimitError) else {}
            notes |= {SILENT: True} if isinstance(answer, SilentError) else {}
            rows.append(_Row(number, clip_id, path, str(answer), notes))
            continue
        log_mel, valid_frames, seconds = answer
        content = log_mel.tobytes() if features else b""
        rows.append(
            _Row(number, clip_id, path, None, {}, content, valid_frames, seconds, *moments(log_mel, valid_frames))
        )
    return sorted(rows, key=lambda row: row.number)


def _summary(rows: list[_Row], kept: list[_Row], compression: str) -> dict[str, Any]:
    """The summary in a shard's footer (see `raymae.features.shard`), with a blank checksum."""
    return {
        "rows": len(kept),
        "seconds": sum(row.seconds for row in kept),
        "quarantine": [
            {"clip_id": row.clip_id, "path": row.path, "reason": row.reason, **row.notes}
            for row in rows
            if row.reason is not None
        ],
        "compression": compression,
        "crc32": BLANK,
        "clips": {
            "frames": [row.valid_frames for row in kept],
            "seconds": [row.seconds for row in kept],
            "mean": [float(f"{row.mean:.8g}") for row in kept],
            "mean_square": [float(f"{row.mean_square:.8g}") for row in kept],
        },
    }
