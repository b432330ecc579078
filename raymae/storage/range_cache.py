"""Parts of stored files that a node keeps on its own disk, for all of its processes and later runs.

A part is a file of its own: written under another name and renamed, so it is there complete or not at all, and what a
crash leaves is found by its name. Whoever reads a part compares its checksum, as with what the storage sends.

fsspec's caches don't keep these promises. None has a limit of its size. `filecache` and `simplecache` fetch whole files
where a range is asked for, a shard of 128 MB for a page of 1 MB, and write them in place, so that another process, or
the next one after a crash, takes half a file for a whole one. `blockcache` keeps blocks, but doesn't use them for
`cat_ranges`, and its list of blocks is one file that every process reads at its start and overwrites without a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

log = logging.getLogger(__name__)

KEPT = 0.9
"""Share of the limit that is left when the oldest parts are removed: it takes a listing of all of them."""
PATIENCE = 0.05
"""Seconds to wait while others count what they keep; then a part isn't kept this time."""
ABANDONED = 3600
"""Seconds after which a file that is still being written never will be complete."""
PARTS, USED, PART = "pages", "used", ".part"

_given_up: set[str] = set()
"""Folders that this process doesn't write to any more."""


@dataclass(frozen=True)
class RangeCache:
    """What a node keeps of stored files; picklable."""

    folder: str
    """Local folder."""
    limit: int
    """Most bytes, to within what processes are writing at the moment."""

    def read(self, url: str, start: int, size: int) -> bytes | None:
        """The `size` bytes of a file from `start` on, if they are kept; not checked."""
        try:
            content = self._place(url, start).read_bytes()
        except OSError:
            return None
        return content if len(content) == size else None

    def keep(self, url: str, start: int, content: bytes | memoryview) -> None:
        """Keep a part of a file, for which the oldest ones give way; not at all, with a warning, if that fails."""
        if self.folder in _given_up:
            return
        place = self._place(url, start)
        part = place.with_name(f"{place.name}-{uuid4().hex[:8]}{PART}")
        try:
            Path(self.folder, PARTS).mkdir(mode=0o700, parents=True, exist_ok=True)
            place.parent.mkdir(exist_ok=True)
            if self._reserve(len(content)):
                try:
                    part.write_bytes(content)
                    part.replace(place)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            _given_up.add(self.folder)
            reason = error.strerror or str(error)
            log.warning("compute.cache %s can't be written to (%s): the rest is read from storage", self.folder, reason)

    def _place(self, url: str, start: int) -> Path:
        return Path(self.folder, PARTS, hashlib.sha256(url.encode()).hexdigest()[:32], str(start))

    def _reserve(self, size: int) -> bool:
        """Count `size` bytes more, before they are written, as no process may exceed the limit meanwhile; False if
        there is no room for them, or others are counting."""
        if size > self.limit:
            return False
        with open(Path(self.folder, PARTS, USED), "a+") as file:
            if not _lock(file):
                return False
            file.seek(0)
            text = file.read()
            used = int(text) if text.isdecimal() else None  # unknown at first, or after a crash
            if used is None or used + size > self.limit:
                most = self.limit if used is None else int(KEPT * self.limit)
                used = self._shrink(min(most, self.limit - size))
            file.truncate(0)
            file.write(str(used + size))
        return True

    def _shrink(self, most: int) -> int:
        """Remove the oldest parts until they have `most` bytes; returns how many they have."""
        found: list[tuple[float, int, str]] = []
        with os.scandir(Path(self.folder, PARTS)) as folders:
            for folder in folders:
                if folder.is_dir():
                    with os.scandir(folder) as entries:
                        for entry in entries:
                            with suppress(FileNotFoundError):  # renamed or replaced meanwhile
                                state = entry.stat()
                                found.append((state.st_mtime, state.st_size, entry.path))
        used, long_ago = sum(size for _, size, _ in found), time.time() - ABANDONED
        for changed, size, path in sorted(found):
            if changed < long_ago if path.endswith(PART) else used > most:
                Path(path).unlink(missing_ok=True)
                used -= size
        return used


def _lock(file: IO[str]) -> bool:
    """Lock a file until it is closed; False if others have it for longer than `PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
