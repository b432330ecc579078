"""The feature store: log-mels in Parquet shards, and a table of their clips.

    artifacts/shards/<key>.parquet     clip_id, log_mel (T·F float16 as fixed-size binary), valid_frames, seconds
    artifacts/prepare/<key>/           manifest.json, clips.parquet (one row per stored clip, in shard order),
                                       pages.parquet (where the log-mels lie), quarantine.csv, done.json

Of long tables a process holds no copy: all processes of a node map the same files (`raymae.storage.mapped`). That goes
for everything with a value per clip, and no text of all clips becomes a list.

A shard's key is a hash of the front end's settings and of its clips (name, size, change time), so a shard is computed
once and reused by other tables and labels of the same clips. Fixed-size binary without compression or statistics reads
an order of magnitude faster than Arrow's list of half floats.

float16 is enough: on 40 ESC-10 clips at the default front end the largest rounding error is 0.001 and the
root-mean-square one 0.0002 of the log-mels' standard deviation; the statistics that the SVM baselines use change by
0.001 of theirs, and a reconstruction that is exact but for the rounding has a loss of 0.0001, where predicting the mean
has 1 (`tests/features/test_shard.py`).

Damage: every clip has a checksum that reading verifies, which lowers a core's throughput from 12.1 to 3.9 GB/s with
groups of 4 clips (0.06 ms more per ten-second clip, while loading a clip into a batch takes milliseconds). The whole
file has a checksum too (`raymae.features.shard`), the manifest holds its size, and `data.verify` checks every byte.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.config import AudioConfig, from_dict
from raymae.datasets.rows import Rows
from raymae.features.pages import PAGES, KeptPages, Pages
from raymae.features.shard import explain
from raymae.storage.checksums import CHECKSUMS, crc32, digest
from raymae.storage.folder import Folder
from raymae.storage.mapped import LEAST_ROWS, SharedTables, column
from raymae.storage.range_cache import RangeCache

ROW_GROUP = 4
"""Rows per Parquet row group, one page of log-mels; without the places of pages, whole groups are read."""

SHARDS = "artifacts/shards"


_one_reader = threading.Lock()
"""Arrow's files can't be read by two threads at once."""


@lru_cache(maxsize=64)
def _map_shard(url: str, name: str) -> mmap.mmap:
    with open(Folder(url).path(name), "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@lru_cache(maxsize=64)
def _open_shard(url: str, name: str) -> tuple[pq.ParquetFile, mmap.mmap | None]:
    folder = Folder(url)
    if not folder.is_local:
        return pq.ParquetFile(folder.open(name), page_checksum_verification=True), None
    mapped = _map_shard(url, name)
    source = pa.BufferReader(pa.py_buffer(mapped))
    return pq.ParquetFile(source, page_checksum_verification=True), mapped


@dataclass(frozen=True)
class Layout:
    """What training reads of a clip: an array whose first axis is time."""

    shape: tuple[int, ...]
    """Of a whole clip: (T, F), or (samples,)."""
    dtype: type[np.floating]
    step: int
    """Places of the time axis from one frame to the next."""
    rest: float
    """What stands after the end of a shorter clip."""

    @property
    def nbytes(self) -> int:
        """Bytes of a clip."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def view(self, column: pa.ChunkedArray) -> NDArray[Any]:
        """View a column of fixed-size binaries as (n, *shape), without a copy if it has one chunk."""
        array = column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
        count = (array.offset + len(array)) * int(np.prod(self.shape))
        flat = np.frombuffer(array.buffers()[1], self.dtype, count=count)
        return flat.reshape(-1, *self.shape)[array.offset :]


def log_mel_layout(audio: AudioConfig) -> Layout:
    """Log-mels (T, F) float16."""
    return Layout((audio.n_frames, audio.n_mels), np.float16, 1, audio.silence)


def features_of(column: pa.ChunkedArray, audio: AudioConfig) -> NDArray[np.float16]:
    """View a log_mel column as (n, T, F)."""
    return log_mel_layout(audio).view(column)


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading; picklable."""

    folder: Folder
    """The `prepare` artifact."""
    shards: Folder
    """The folder of the shards."""
    tables: SharedTables = field(default=SharedTables(), kw_only=True)
    """Where the node's processes share what they hold of every clip."""
    cache: RangeCache | None = field(default=None, kw_only=True)
    """Where the node keeps pages of shards on object storage."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest: shards, counts, shape and settings."""
        return dict(self.folder.read_json("manifest.json", checked=True))

    @cached_property
    def audio(self) -> AudioConfig:
        """The front end that made the features."""
        section: AudioConfig = from_dict(AudioConfig, self.manifest["audio"])
        return section

    @property
    def layout(self) -> Layout:
        """What `read_for_training` returns of a clip."""
        return log_mel_layout(self.audio)

    @cached_property
    def clips(self) -> pa.Table:
        """Table with one row per stored clip; row numbers are the positions in the store."""
        return self._shared("clips.parquet", "", lambda: self.folder.read_table("clips.parquet", checked=True))

    @cached_property
    def clip_ids(self) -> pa.LargeStringArray:
        """The clips' ids as one array: taking some from a column of many chunks would copy them all."""
        ids = self.clips["clip_id"]

        def made() -> pa.Table:
            return pa.table({"clip_id": pa.concat_arrays(ids.cast(pa.large_string()).chunks)})

        return self._shared("clips.parquet", "clip_id", made)["clip_id"].chunk(0)

    @cached_property
    def recordings(self) -> tuple[Rows, Rows]:
        """Of every clip, the row of the first clip of its recording and their number, (n,) each."""
        clips = self.clips

        def made() -> pa.Table:
            rows = np.arange(len(clips))
            if "recording" not in clips.column_names:
                return pa.table({"first": rows, "count": np.ones(len(rows), np.int64)})
            number = clips["recording"].combine_chunks().dictionary_encode().indices.to_numpy()
            begins = np.flatnonzero(np.diff(number, prepend=-1))
            counts = np.diff(begins, append=len(rows))
            return pa.table({"first": np.repeat(begins, counts), "count": np.repeat(counts, counts)})

        found = self._shared("clips.parquet", "recordings", made)
        return column(found, "first"), column(found, "count")

    def _shared(self, name: str, what: str, make: Callable[[], pa.Table]) -> pa.Table:
        """What is made of a file of the artifact; of many clips under a key that names the file's content."""
        if not self._is_long:
            return make()
        checksum = self._checksums.get(name) or crc32(self.folder.read_bytes(name))
        return self.tables.table(digest([self.folder.url, name, checksum, what]), make)

    @cached_property
    def _is_long(self) -> bool:
        return self.folder.exists("manifest.json") and len(self) >= LEAST_ROWS

    @cached_property
    def _checksums(self) -> dict[str, str]:
        return dict(self.folder.read_json(CHECKSUMS)) if self.folder.exists(CHECKSUMS) else {}

    @cached_property
    def _starts(self) -> Rows:
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Read log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order of `rows`.

        Raises ValueError that names a shard that is missing or damaged.
        """
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        if self._pages is not None:
            return self._read_pages(shard_of, rows)
        log_mel = np.empty((len(rows), self.audio.n_frames, self.audio.n_mels), np.float16)
        valid_frames = np.empty(len(rows), np.int32)
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            try:
                log_mel[here], valid_frames[here] = self._read_shard(int(shard), rows[here] - self._starts[shard])
            except (OSError, pa.ArrowException, ValueError, IndexError) as error:
                _map_shard.cache_clear()
                _open_shard.cache_clear()  # the open files are of a shard that will be replaced
                reason = explain(self.shards, self.manifest["shards"][shard]["name"], error)
                if reason is error:
                    raise
                raise reason from error
        return log_mel, valid_frames

    @cached_property
    def _pages(self) -> Pages | None:
        if not self.folder.exists(PAGES):
            return None

        def read() -> pa.Table:
            return self.folder.read_table(PAGES, checked=True)

        def by_clip() -> pa.Table:
            table = read()
            return pa.table(
                {"crc32": pc.list_flatten(table["crc32"]), "frames": pc.list_flatten(table["valid_frames"])}
            )

        starts = self._shared(PAGES, "", lambda: read().select(["start"]))
        clips = self._shared(PAGES, "clips", by_clip)
        return Pages.of(column(starts, "start"), clips, np.diff(self._starts), ROW_GROUP)

    @cached_property
    def _names(self) -> list[str]:
        return [str(shard["name"]) for shard in self.manifest["shards"]]

    def _read_pages(self, shard_of: Rows, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Read rows by the places of their pages: from object storage all at once."""
        pages, shape = self._pages, (self.audio.n_frames, self.audio.n_mels)
        assert pages is not None
        read = self._mapped if self.shards.is_local else self._requested
        kept = KeptPages(self.cache, self.shards.url, self._names) if self.cache and not self.shards.is_local else None
        within = rows - self._starts[shard_of]
        try:
            found = pages.read(read, np.diff(self._starts), shard_of, within, 2 * shape[0] * shape[1], kept)
        except (OSError, ValueError) as error:
            _map_shard.cache_clear()  # the open files are of a shard that will be replaced
            for shard in np.unique(shard_of):
                reason = explain(self.shards, self._names[shard], error)
                if reason is not error:
                    raise reason from error
            raise
        return found.view(np.float16).reshape(-1, *shape), pages.valid_frames[rows]

    def _requested(self, ranges: list[tuple[int, int, int]]) -> list[bytes]:
        return self.shards.read_ranges([(self._names[shard], start, end) for shard, start, end in ranges])

    def _mapped(self, ranges: list[tuple[int, int, int]]) -> list[bytes]:
        found = []
        for shard, start, end in ranges:
            mapped = _map_shard(self.shards.url, self._names[shard])
            found.append(mapped[start:end])
            mapped.madvise(mmap.MADV_DONTNEED)  # or this process's memory would grow with all that it has read
        return found

    def read_for_training(self, rows: Rows) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Read what training takes of some rows, (n, *layout.shape), and how much of it is valid (n,)."""
        return self.read(rows)

    def _read_shard(self, shard: int, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        with _one_reader:
            file, mapped = _open_shard(self.shards.url, self.manifest["shards"][shard]["name"])
            size = file.metadata.row_group(0).num_rows
            groups, index = np.unique(rows // size, return_inverse=True)
            table = file.read_row_groups(groups.tolist(), columns=["log_mel", "valid_frames"], use_threads=False)
        found = index * size + rows % size
        result = features_of(table["log_mel"], self.audio)[found], table["valid_frames"].to_numpy()[found]
        if mapped:
            mapped.madvise(mmap.MADV_DONTNEED)  # or this process's memory would grow with all that it has read
        return result


def iterate(
    store: FeatureStore, rows: Rows, size: int
) -> Iterator[tuple[Rows, NDArray[np.float16], NDArray[np.int32]]]:
    """Read rows in order, `size` at a time; yields (rows, log_mel, valid_frames)."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, *store.read(part)
