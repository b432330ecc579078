"""Tar shards and Parquet tables of audio: list their clips and read a clip's bytes."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from raymae.audio.errors import AudioError, UnreachableError
from raymae.config import redact
from raymae.storage.folder import change_time
from raymae.storage.io_wait import asking, waiting
from raymae.storage.retry import READ_SECONDS, is_transient, with_retries

Found = TypeVar("Found")

AUDIO = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".w64", ".rf64", ".caf"),
    *(".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".mkv", ".mka", ".wma", ".amr"),  # by PyAV
)
"""Name endings that mark a recording where no table lists them."""

PACKED = r"(?s)^(?P<inner>(?:tar|parquet)://.+)::(?P<outer>.+)$"
"""Pattern of the address of a clip within a container."""

WHOLE = 2**24
"""Bytes up to which a clip is fetched in one piece; of a longer one only the parts that the decoder reads."""

_BUFFER = 2**20


@dataclass(frozen=True)
class Container:
    """A file at a path or URL, read by position only: an abandoned thread of a timed-out read disturbs no other."""

    url: str
    size: int
    mtime: float = 0.0

    @classmethod
    def open(cls, url: str) -> Container:
        """Find the container at a path or URL; AudioError if there is none."""
        if "://" in url:
            fs, path = url_to_fs(url)
            info = read_with_retries(lambda: fs.info(path), url)
            if info["type"] != "file" or info["size"] is None:
                raise AudioError("not a file of known size")
            return cls(url, info["size"], change_time(info))
        status = read_with_retries(lambda: os.stat(url), url)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("not a regular file")
        return cls(url, status.st_size, status.st_mtime)

    def read(self, start: int, stop: int) -> bytes:
        """Read the bytes from `start` up to, not including, `stop`."""
        if "://" in self.url:
            fs, path = url_to_fs(self.url)
            return bytes(read_with_retries(lambda: fs.cat_file(path, start=start, end=stop), self.url))
        return read_with_retries(lambda: _read_local(self.url, start, stop), self.url)

    def part(self, start: int, size: int, buffer: int = _BUFFER) -> BinaryIO:
        """A part as a file object that reads on demand, `buffer` bytes at a time."""
        return io.BufferedReader(_Part(self, start, size), buffer)


def storage_of(path: str) -> str:
    """Storage of the clip at an address: scheme and host of a URL, or the folder of a file."""
    outer = path.rpartition("::")[2]
    return "/".join(outer.split("/", 3)[:3]) if "://" in outer else os.path.dirname(outer)


class _Part(io.RawIOBase):
    def __init__(self, container: Container, start: int, size: int) -> None:
        self._container, self._start, self._size, self._position = container, start, size, 0
        self.error: UnreachableError | None = None
        """The transient error of a failed read, which decoders take for the end of the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if self._position < 0:
            raise OSError("negative seek position")
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        stop = min(self._position + len(buffer), self._size)
        start = min(self._position, stop)
        try:
            content = self._container.read(self._start + start, self._start + stop)
        except Exception as error:  # file systems have their own exceptions
            if is_transient(error):
                self.error = UnreachableError(reason_of(error))
                raise self.error from None
            raise
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def read_first_byte(path: str) -> None:
    """Read the first byte of a file, so that a hanging disk hangs here and not in the decoder."""
    with suppress(OSError, ValueError):  # the decoder reports what is wrong with the file
        if stat.S_ISREG(read_with_retries(lambda: os.stat(path), path).st_mode):
            read_with_retries(lambda: _read_local(path, 0, 1), path)


def read_with_retries(call: Callable[[], Found], url: str) -> Found:
    """Read from a storage, with retries while it fails temporarily; the time counts as waiting for it."""
    with waiting():
        return with_retries(lambda: asking(call), f"reading {redact(url)}", READ_SECONDS)


def _read_local(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), stop - start, start)


find_container = lru_cache(maxsize=64)(Container.open)  # for URLs: looked up once per process


def reason_of(error: Exception) -> str:
    """Why a container or clip can't be read, in one line of at most 200 characters."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, StopIteration):
        return "fewer rows than its header promises"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return redact(" ".join(text.split()))[:200]


class Contents(NamedTuple):
    """Entries of a container in its order: names, offsets, sizes in bytes (-1: not a file); why some may be missing."""

    names: pa.Array
    starts: pa.Array
    sizes: pa.Array
    problem: str = ""


EMPTY = Contents(pa.array([], pa.string()), pa.array([], pa.int64()), pa.array([], pa.int64()))


# Tar shards ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def tar_contents(tar: Container) -> Contents:
    """Members of a tar; of several with the same name the last counts, as for tar itself."""
    members: dict[str, tuple[int, int]] = {}
    problem = ""
    try:
        with tarfile.open(fileobj=tar.part(0, tar.size, buffer=2**16), mode="r:") as file:
            end = -1
            while (member := file.next()) is not None:
                if member.size < 0 or file.offset <= end:
                    raise tarfile.ReadError("a size is negative")
                end = file.offset
                name = member.name.encode(errors="surrogateescape").decode(errors="replace").removeprefix("./")
                members.pop(name, None)
                if not member.isdir():
                    is_file = member.isreg() and not member.issparse()
                    members[name] = (member.offset_data, member.size if is_file else -1)
                file.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members otherwise
            problem = _trailing_problem(tar, file.offset)
    except Exception as error:  # tarfile's own, and those that a forged header causes in it
        if is_transient(error):
            raise  # or this process would cache it as a fault of the archive
        problem = reason_of(error)
    problem = f"not all of the archive can be read: {problem}" if problem and members else problem
    starts, sizes = (pa.array([place[part] for place in members.values()], pa.int64()) for part in (0, 1))
    return Contents(pa.array(members, pa.string()), starts, sizes, problem)


def _trailing_problem(tar: Container, end: int) -> str:
    """What is wrong where the members of a tar end, or "": tarfile takes a damaged header for the end."""
    if tar.read(end, end + tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        return f"neither a member nor the end at byte {end}"
    more = tar.size - end
    return f"{more} bytes after its end at byte {end}" if more > _BUFFER else ""  # tar itself pads with less


@lru_cache(maxsize=2)
def _positions(tar: Container) -> dict[str, int]:
    return {name: index for index, name in enumerate(tar_contents(tar).names.to_pylist())}


_locks: dict[Container, threading.Lock] = {}


def open_member(tar: Container, name: str) -> bytes | BinaryIO:
    """Content of a member of a tar, or a file object if it is longer than `WHOLE`; AudioError if it can't be read."""
    start, size = _find_member(tar, name)
    return tar.read(start, start + size) if size <= WHOLE else tar.part(start, size)


def member_part(tar: Container, name: str, buffer: int) -> BinaryIO:
    """A member of a tar as a file object that reads on demand, `buffer` bytes at a time."""
    return tar.part(*_find_member(tar, name), buffer)


def _find_member(tar: Container, name: str) -> tuple[int, int]:
    """Offset and size of a member; AudioError if there is none, or not all of it."""
    lock = _locks.setdefault(tar, threading.Lock())  # a second thread waits for the index instead of building it again
    with waiting():  # includes tarfile's own work: the time limit is for the clip
        asking(lock.acquire)
        try:
            contents, index = tar_contents(tar), _positions(tar).get(name)
        finally:
            lock.release()
    if index is None:
        raise AudioError(contents.problem or "no such member in the archive")
    start, size = contents.starts[index].as_py(), contents.sizes[index].as_py()
    if size < 0:
        raise AudioError("not a regular file")
    if start + size > tar.size:
        raise AudioError(f"truncated: {start + size - tar.size} bytes are missing in the archive")
    return start, size


# Columns of Parquet files -------------------------------------------------------------------------------------------


def holds_audio(schema: pa.Schema, column: str = "audio") -> bool:
    """Whether a column of a table holds encoded files."""
    if schema.names.count(column) != 1:
        return False
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class _Rows:
    """Column of encoded files, read forwards a few rows at a time, so that only its pages have to fit into memory."""

    def __init__(self, table: Container, column: str) -> None:
        self._file = pq.ParquetFile(table.part(0, table.size), pre_buffer=False, buffer_size=_BUFFER)
        schema, metadata = self._file.schema_arrow, self._file.metadata
        if not holds_audio(schema, column):
            raise AudioError(f"no column {column} of encoded files")
        self._leaf = f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.counts = [group.num_rows for group in groups]
        if min(self.counts, default=0) < 0 or sum(self.counts) > table.size:
            raise ValueError(f"it claims {sum(self.counts)} rows in {table.size} bytes")
        # of all columns together: reading a forged column's own metadata would crash the process
        self.means = [max(1, group.total_byte_size // max(1, group.num_rows)) for group in groups]
        self._ends = list(accumulate(self.counts))
        self._group, self._first, self._batch = -1, 0, pa.array([], pa.binary())
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._failed: tuple[int, int, str] | None = None

    def read(self, row: int) -> bytes:
        """Read the clip of a row, counted from 0."""
        if not 0 <= row < sum(self.counts):
            raise AudioError(f"no such row: the table has {sum(self.counts)}")
        group = bisect_right(self._ends, row)
        if self._failed and self._failed[0] == group and row >= self._failed[1]:
            raise AudioError(self._failed[2])
        if group != self._group or row < self._first:
            size = max(1, min(64, WHOLE // self.means[group]))
            self._batches = self._file.iter_batches(size, row_groups=[group], columns=[self._leaf], use_threads=False)
            self._group, self._first, self._batch = group, self._ends[group] - self.counts[group], self._batch[:0]
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = self._next()
        content = self._batch[row - self._first]
        if not content.is_valid:
            raise AudioError("no audio in this row")
        return bytes(content.as_py())

    def _next(self) -> pa.Array:
        try:
            column = next(self._batches).column(0)
        except Exception as error:  # the rest of the row group can't be read either and isn't tried again
            if is_transient(error):
                self._group = -1
                raise
            self._failed, self._group = (self._group, self._first, reason_of(error)), -1
            raise AudioError(self._failed[2]) from None
        return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


_parked: dict[tuple[Container, str], _Rows] = {}
"""The column last read from; a reader takes it out, so that no two threads share one."""


def open_row(table: Container, name: str) -> bytes:
    """Content of a row, named <column>/<number from 1>; AudioError if it can't be read."""
    column, _, number = name.rpartition("/")
    rows = _parked.pop((table, column), None) or _Rows(table, column)
    try:
        return rows.read(int(number) - 1 if number.isdecimal() else -1)
    finally:
        _parked.clear()
        _parked[table, column] = rows


def parquet_contents(table: Container) -> Contents:
    """Rows of a Parquet file with a column `audio`, each with the mean size in its row group; no row is read."""
    try:
        rows = _Rows(table, "audio")
    except Exception as error:  # Arrow's and the file system's; AudioError: no such column
        if is_transient(error):
            raise
        return EMPTY._replace(problem="" if isinstance(error, AudioError) else reason_of(error))
    count = sum(rows.counts)
    numbers = pa.array(np.arange(1, count + 1)).cast(pa.string())
    sizes = pa.array(np.repeat(np.array(rows.means, np.int64), rows.counts))
    return Contents(pc.binary_join_element_wise("audio", numbers, "/"), pa.nulls(count, pa.int64()), sizes)
