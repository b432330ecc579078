"""From recordings to clips: recordings longer than a clip are cut into consecutive ones.

The clips of a recording are neighbours, share its label, group and split, and have its clip_id in the column
`recording`. `start_seconds` and `end_seconds` say which part they are; both are null for a whole recording.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.audio.decode import open_audio, read_mono
from raymae.audio.errors import AudioError, UnreachableError
from raymae.audio.length import length
from raymae.audio.sources import open_in_parts
from raymae.audio.windows import window_starts
from raymae.config import AudioConfig, Config, redact
from raymae.console.bars import bar
from raymae.datasets.clips import load, own_folder
from raymae.datasets.content import in_threads
from raymae.datasets.labels import Labels
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

LENGTHS = "datasets/lengths.parquet"
"""In the storage: the length of every recording that was asked for, by its path and state."""
STATE = ("path", "size", "mtime", "content")
READERS = 16
MANY = 2_000
"""Recordings whose headers take long enough to be read for a progress bar."""
BLOCK = 2**20
KEPT_SECONDS = 2.0
"""Lengths that are read in less aren't kept: a command that is refused leaves nothing behind."""


def load_clips(config: Config, storage: Folder, labels: Labels | None = None, *, scored: bool = False) -> pa.Table:
    """The clips of a run: its recordings (`raymae.datasets.clips.load`, which says what is refused), cut to clips.

    Raises ConnectionError where a storage of recordings can't be reached.
    """
    recordings = load(config.data, own_folder(storage), labels, scored=scored)
    return cut(recordings, lengths(recordings, storage), config.audio)


def cut(recordings: pa.Table, seconds: NDArray[np.float64], audio: AudioConfig) -> pa.Table:
    """Cut recordings of some lengths (n,), NaN where unknown, into clips.

    Of a part of a recording that a table names (columns start_seconds, end_seconds), that part is cut. Adds the columns
    recording, start_seconds, end_seconds, seconds (null where unknown) and unused_seconds, of a rest that is too short
    for a clip (`raymae.audio.windows.least_samples`). A recording of several clips that has no group is one.
    """
    begin, end = (_numbers(recordings, name) for name in ("start_seconds", "end_seconds"))
    first, last = np.nan_to_num(begin), np.where(np.isnan(end), seconds, end)
    samples = np.nan_to_num((last - first) * audio.sample_rate)
    counts = np.array([len(window_starts(round(one), audio)) for one in samples.tolist()], np.int64)
    row = np.repeat(np.arange(len(recordings)), counts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    several = counts[row] > 1
    start = first[row] + number * audio.clip_seconds
    stop = np.where(number + 1 == counts[row], last[row], start + audio.clip_seconds)
    clips = recordings.take(row)
    length = np.where(several, stop - start, (last - first)[row])
    used = np.minimum(length, audio.clip_seconds)
    name = clips["clip_id"]
    part = pc.binary_join_element_wise(name, pa.array([f"{one:g}" for one in start.tolist()]), "@")
    columns = {
        "clip_id": pc.if_else(pa.array(several), part, name),
        "group": pc.coalesce(clips["group"], pc.if_else(pa.array(several), name, pa.scalar(None, pa.string()))),
        "recording": name,
        "start_seconds": pa.array(np.where(several, start, begin[row]), from_pandas=True),
        "end_seconds": pa.array(np.where(several, stop, end[row]), from_pandas=True),
        "seconds": pa.array(used, from_pandas=True),
        "unused_seconds": pa.array(length - used, from_pandas=True),
    }
    for column, values in columns.items():
        place = clips.schema.get_field_index(column)
        clips = clips.append_column(column, values) if place < 0 else clips.set_column(place, column, values)
    return clips


def recordings_of(clips: pa.Table) -> pa.Table:
    """A row per recording of a table from `cut`, as it was before; a table of whole recordings is returned as it is."""
    if "recording" not in clips.column_names:
        return clips
    recording = clips["recording"].combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, counts = np.unique(recording, return_index=True, return_counts=True)
    rows = clips.take(first)
    own = pc.and_(pa.array(counts > 1), pc.equal(rows["group"], rows["recording"]))
    group = pc.if_else(pc.fill_null(own, False), pa.scalar(None, pa.string()), rows["group"])
    for column, values in {"clip_id": rows["recording"], "group": group}.items():
        rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    return rows


def _numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    if column not in table.column_names:
        return np.full(len(table), np.nan)
    return np.asarray(table[column].to_numpy(), np.float64)


# Lengths --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """Lengths that an earlier command found, by a digest of the recording's path and state."""

    storage: Folder

    def read(self) -> dict[str, float]:
        """All of them; none where the file is missing or damaged."""
        try:
            table = self.storage.read_table(LENGTHS)
            return dict(zip(table["recording"].to_pylist(), table["seconds"].to_pylist(), strict=True))
        except (OSError, ValueError, KeyError, pa.ArrowException):
            return {}

    def write(self, found: dict[str, float]) -> None:
        """Write all of them."""
        columns = {"recording": pa.array(found), "seconds": pa.array(found.values(), pa.float64())}
        self.storage.write_table(LENGTHS, pa.table(columns))


def lengths(recordings: pa.Table, storage: Folder) -> NDArray[np.float64]:
    """The length (n,) of each recording in seconds; NaN where it can't be read: `prepare` says why.

    Headers that take more than `KEPT_SECONDS` to read are read once: the lengths are kept in the storage. Raises
    ConnectionError where a storage can't be reached.
    """
    columns = [recordings[name].to_pylist() for name in STATE if name in recordings.column_names]
    names = [digest(state) for state in zip(*columns, strict=True)]
    known = _Known(storage)
    found = known.read()
    missing = {
        name: path for name, path in zip(names, recordings["path"].to_pylist(), strict=True) if name not in found
    }
    if missing:
        started = time.monotonic()
        found |= dict(zip(missing, measure_all(missing.values()), strict=True))
        if time.monotonic() - started > KEPT_SECONDS:
            known.write(found)
    return np.array([found[name] for name in names], np.float64)


def measure_all(paths: Iterable[str]) -> list[float]:
    """The length of each recording, many at once."""
    paths = list(paths)
    found = in_threads(measure, paths, READERS)
    if len(paths) < MANY:
        return list(found)
    seconds = []
    with bar("lengths", len(paths), "file") as shown:
        for one in found:
            seconds.append(one)
            shown.advance(1)
    return seconds


def measure(path: str) -> float:
    """The length of a recording in seconds, of its headers where they say; NaN for one that can't be read."""
    try:
        found = length(open_in_parts(path))
        return found.seconds if found else _count(path)
    except UnreachableError as error:
        raise ConnectionError(f"{redact(path)} can't be reached ({error}): run the same command again") from None
    except AudioError:
        return float("nan")


def _count(path: str) -> float:
    with open_audio(open_in_parts(path)) as file:
        frames = 0
        while block := len(read_mono(file, BLOCK)):
            frames += block
        return frames / file.samplerate
