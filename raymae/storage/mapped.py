"""Tables that all processes of a node share: Arrow files in a local folder, mapped into memory.

A table that is read from Parquet is a copy of the process's own, and a node has dozens of processes. Of a mapped file
the node holds the pages that are in use once. Parquet itself can't be mapped, wherever it lies, because its values are
encoded; so the first process of a node that asks for a table writes it as Arrow, and the others wait for it.

Nothing depends on these files: what is damaged, or can't be written, is made anew from the storage.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

log = logging.getLogger(__name__)

LEAST_ROWS = 20_000
"""Of fewer clips, which take some MB, each process has a copy of its own."""
UNUSED = 7 * 86_400
"""Seconds after which a file that no process has opened is removed, when another one is written."""
ENDING, LOCK, PART = ".arrow", ".lock", ".part"


@dataclass(frozen=True)
class SharedTables:
    """The tables of a node; picklable, and as small as a path."""

    folder: str | None = None
    """Local folder; None: one of the user's own among the temporary files."""

    def table(self, key: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of this key, which `make` returns, in as few chunks as possible.

        The key has to name the content: a table that was written under it, by any process, is not made again.
        """
        folder = writable(self.folder)
        if folder is None:
            return make()
        found = _mapped(folder, key)
        if found is not None:
            return found
        with _locked(folder / (key + LOCK)):
            found = _mapped(folder, key)  # another process may have written it meanwhile
            if found is None:
                found = _write(folder, key, make())
                release_memory()  # of what `make` read
        return found

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same values (n,), shared; read-only where they are."""
        if len(values) < LEAST_ROWS:
            return values
        values = np.ascontiguousarray(values)
        key = hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.data).hexdigest()[:32]
        return column(self.table(key, lambda: pa.table({"values": values})), "values")


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of numbers (n,) without missing ones, without a copy where it has one chunk."""
    chunks = [chunk.to_numpy() for chunk in table[name].chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def release_memory() -> None:
    """Return freed memory to the system: Arrow and C keep what large tables took, up to hundreds of MB a process."""
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError, OSError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


@cache
def writable(folder: str | None) -> Path | None:
    """The folder for tables, made where it is missing; None, with a warning, if it can't be used."""
    path = Path(folder, "tables") if folder else Path(tempfile.gettempdir(), f"raymae-{os.getuid()}", "tables")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for own in (path,) if folder else (path.parent, path):  # anybody may make a folder of this name in /tmp
            found = own.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise PermissionError(1, "it has another owner, or others may write to it")
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(1, "no permission")
    except OSError as error:
        _warn(str(path), error.strerror or str(error))
        return None
    return path


@cache
def _warn(path: str, reason: str) -> None:
    log.warning("%s can't be written to (%s): each process holds the clip table in its own memory", path, reason)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; where the file system has none, several processes do the same work."""
    with ExitStack() as stack:
        with suppress(OSError):
            fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
        yield


def _mapped(folder: Path, key: str) -> pa.Table | None:
    """The table of a key, if its file exists and is what was written: its name holds its checksum."""
    for path in folder.glob(f"{key}-*{ENDING}"):
        try:
            content = pa.memory_map(str(path)).read_buffer() if path.stat().st_size else b""
            if f"{zlib.crc32(content):08x}" == path.stem.rpartition("-")[2]:
                os.utime(path)
                return pa.ipc.open_file(content).read_all()
            log.warning("%s is damaged and is written anew", path)
            path.unlink(missing_ok=True)
        except OSError:  # another process has removed it
            continue
    return None


def _write(folder: Path, key: str, table: pa.Table) -> pa.Table:
    """Write a table, complete or not at all, and map it; the table itself, with a warning, where there is no room."""
    part = folder / f"{key}-{uuid4().hex[:8]}{PART}"
    try:
        _remove_unused(folder)
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        with pa.memory_map(str(part)) as file:
            checksum = zlib.crc32(file.read_buffer())
        part.replace(folder / f"{key}-{checksum:08x}{ENDING}")
    except OSError as error:
        _warn(str(folder), os.strerror(error.errno) if error.errno else str(error))
        return table
    finally:
        part.unlink(missing_ok=True)
    found = _mapped(folder, key)
    return table if found is None else found


def _remove_unused(folder: Path) -> None:
    """Remove what no process has opened for long; one that still maps it keeps it."""
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > UNUSED:
                path.unlink()
