"""Where the log-mels of a store lie in its shards, and reading them by ranges of bytes, from any thread.

The log-mels of a row group are one page of a Parquet file: without compression, the values one after the other. With
their places known, and a checksum of every clip, a window is read from object storage by one round of concurrent
requests, of the clips that it needs and no others; a file object would read footers first, one after the other, and
ahead, several times as much as is used.
From a disk several threads read at once, which Arrow's files don't allow.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.storage.mapped import column
from raymae.storage.range_cache import RangeCache

PAGES = "pages.parquet"
"""In the `prepare` artifact: a row for each row group of all shards, in their order."""
LARGEST_GAP = 1 << 16
"""Bytes between two clips of a shard that are read with them rather than by another request."""


def page_starts(metadata: pq.FileMetaData, row_bytes: int) -> list[int]:
    """The offset of the log-mels of every row group in an uncompressed shard; ValueError if they aren't one page."""
    column = metadata.schema.to_arrow_schema().get_field_index("log_mel")
    starts = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = group.column(column)
        size = group.num_rows * row_bytes
        head = found.total_compressed_size - size
        if found.compression != "UNCOMPRESSED" or not 0 < head < 256:
            raise ValueError(f"row group {number} isn't one uncompressed page")
        starts.append(found.data_page_offset + head)
    return starts


def pages_table(summaries: Sequence[dict[str, Any]], size: int) -> pa.Table | None:
    """The table of `PAGES` of shards in order, with row groups of `size` clips; None if one of them has none, as with
    compression."""
    if not all(summary.get("starts") for summary in summaries if summary["rows"]):
        return None
    starts: list[int] = []
    sums: list[list[int]] = []
    frames: list[list[int]] = []
    for summary in summaries:
        own = range(0, summary["rows"], size)
        starts += summary.get("starts", [])
        sums += [summary["sums"][first : first + size] for first in own]
        frames += [summary["clips"]["frames"][first : first + size] for first in own]
    columns = (
        pa.array(starts, pa.int64()),
        pa.array(sums, pa.list_(pa.uint32())),
        pa.array(frames, pa.list_(pa.int32())),
    )
    return pa.table(dict(zip(("start", "crc32", "valid_frames"), columns, strict=True)))


@dataclass(frozen=True)
class KeptPages:
    """The clips of a folder's shards in a node's cache."""

    cache: RangeCache
    url: str
    names: Sequence[str]

    def read(self, shard: int, start: int, size: int) -> bytes | None:
        """A page, if it is kept; not checked."""
        return self.cache.read(f"{self.url}/{self.names[shard]}", start, size)

    def keep(self, shard: int, start: int, content: bytes | memoryview) -> None:
        """Keep a page."""
        self.cache.keep(f"{self.url}/{self.names[shard]}", start, content)


ReadRanges = Callable[[list[tuple[int, int, int]]], Sequence[bytes | memoryview]]


@dataclass(frozen=True)
class Pages:
    """The pages of a store's shards."""

    starts: NDArray[np.int64]
    """(G,) of all row groups, shard by shard."""
    sums: NDArray[np.uint32]
    """(n,), the CRC-32 of the log-mels of all clips."""
    valid_frames: NDArray[np.int32]
    """(n,) of all clips."""
    first: Rows
    """(shards,): number of every shard's first row group."""
    group: int
    """Rows of a row group."""

    @classmethod
    def of(cls, starts: NDArray[np.int64], clips: pa.Table, counts: Rows, group: int) -> Pages:
        """The pages of shards with so many rows (shards,), by their starts and the clips' columns crc32 and frames."""
        first = np.cumsum([0, *(-(-counts[:-1] // group))], dtype=np.int64)
        return cls(starts, column(clips, "crc32"), column(clips, "frames"), first, group)

    def read(
        self,
        read: ReadRanges,
        counts: Rows,
        shards: Rows,
        rows: Rows,
        row_bytes: int,
        kept: KeptPages | None = None,
    ) -> NDArray[np.uint8]:
        """The bytes (n, row_bytes) of some rows, by their shards (n,) and rows within them (n,).

        Args:
            read: returns ranges (shard, start, end) of bytes.
            counts: (shards,), rows of every shard.
            kept: what need not be read again; a page that isn't what was written is, and replaced there.

        ValueError for a clip that isn't what was written.
        """
        pairs, place = np.unique(np.stack([shards, rows]), axis=1, return_inverse=True)
        sums = self.sums[np.cumsum([0, *counts[:-1]], dtype=np.int64)[pairs[0]] + pairs[1]]
        starts = self.starts[self.first[pairs[0]] + pairs[1] // self.group] + pairs[1] % self.group * row_bytes
        found = np.empty((len(rows), row_bytes), np.uint8)
        order = np.argsort(place.ravel(), kind="stable")
        bounds = np.searchsorted(place.ravel()[order], np.arange(pairs.shape[1] + 1))

        def take(clip: int, values: bytes | memoryview) -> bool:
            if len(values) != row_bytes or zlib.crc32(values) != sums[clip]:
                return False
            found[order[bounds[clip] : bounds[clip + 1]]] = np.frombuffer(values, np.uint8)
            return True

        missing = np.arange(pairs.shape[1])
        if kept is not None:
            known = (
                kept.read(int(shard), int(start), row_bytes) for shard, start in zip(pairs[0], starts, strict=True)
            )
            missing = np.array([clip for clip, one in enumerate(known) if one is None or not take(clip, one)], np.int64)
        ranges = merged(pairs[0][missing], starts[missing], starts[missing] + row_bytes)
        contents = read([(shard, start, end) for shard, start, end, _ in ranges]) if ranges else []
        for (shard, begin, _, clips), content in zip(ranges, contents, strict=True):
            view = memoryview(content)
            for clip in missing[clips].tolist():
                values = view[starts[clip] - begin : starts[clip] - begin + row_bytes]
                if not take(clip, values):
                    raise ValueError(f"row {pairs[1][clip]} doesn't have its checksum")
                if kept is not None:
                    kept.keep(shard, int(starts[clip]), values)
        return found


def merged(shards: Rows, starts: Rows, ends: Rows) -> list[tuple[int, int, int, list[int]]]:
    """Ranges (shard, start, end, the clips within) of clips that are sorted by shard and place."""
    found: list[tuple[int, int, int, list[int]]] = []
    for clip, (shard, start, end) in enumerate(zip(shards.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        if found and found[-1][0] == shard and 0 <= start - found[-1][2] <= LARGEST_GAP:
            found[-1] = (shard, found[-1][1], end, [*found[-1][3], clip])
        else:
            found.append((shard, start, end, [clip]))
    return found
