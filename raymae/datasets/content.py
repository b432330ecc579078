"""What tells apart recordings of equal names, sizes and time stamps: a hash of a part of their content."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.containers import PACKED

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Value = TypeVar("Value")

BLOCK = 8 * 1024
"""Bytes that are read at the start, in the middle and at the end of a file; a shorter file is read whole."""
READERS = 16
MANY = 100_000
"""Files from which on the log says what takes a minute or so."""


def content_of(path: str) -> str | None:
    """Hash (16 hex digits) of a local file's size and of three blocks of it; None if it can't be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return None
        size = status.st_size
        places = (0,) if size <= 3 * BLOCK else (0, (size - BLOCK) // 2, size - BLOCK)
        state = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
        for place in places:
            state.update(os.pread(file, 3 * BLOCK if len(places) == 1 else BLOCK, place))
        return state.hexdigest()
    except OSError:
        return None
    finally:
        os.close(file)


def with_content(rows: pa.Table) -> pa.Table:
    """Append `content` (`content_of`, of a shard for its members); null for recordings at URLs.

    Object stores set the change time themselves, so that copying can't fake it; on local disks it can.
    """
    path = pc.cast(rows["path"], pa.string()).combine_chunks()
    outer = pc.coalesce(pc.struct_field(pc.extract_regex(path, PACKED), "outer"), path)
    files = outer.dictionary_encode()
    names = [None if re.match(r"[A-Za-z0-9+.-]+://", name) else name for name in files.dictionary.to_pylist()]
    if len(names) >= MANY:
        log.info("looking into %d recordings, to tell them from others of the same name", len(names))
    found = list(in_threads(lambda name: content_of(name) if name else None, names, READERS))
    return rows.append_column("content", pa.array(found, pa.string()).take(files.indices))


def in_threads(function: Callable[[Item], Value], items: Sequence[Item], threads: int) -> Iterator[Value]:
    """Apply a function to items, and yield what it returns in their order.

    A thread takes up to 64 items at once: to hand over one costs as much as to read a header on a local disk.
    """
    size = max(1, min(64, len(items) // (4 * threads)))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(threads) as pool:
        for values in pool.map(lambda part: [function(item) for item in part], parts):
            yield from values
