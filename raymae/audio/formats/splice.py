"""A file that consists of parts of another file and of given bytes, without a copy of the whole."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO

Part = bytes | tuple[int, int]
"""Given bytes, or the start and stop of a span of the other file."""


class Spliced(io.RawIOBase):
    """Parts, one after the other, as a file to read."""

    def __init__(self, base: BinaryIO, parts: Sequence[Part]) -> None:
        self.base = base
        self._parts = [part for part in parts if _size(part)]
        self._ends = list(accumulate(_size(part) for part in self._parts))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = self._ends[-1] if self._ends else 0
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}[whence]
        if self._position < 0:
            raise OSError("negative seek position")
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        view, count = memoryview(buffer), 0
        while count < len(view) and (content := self._piece(len(view) - count)):
            view[count : count + len(content)] = content
            count += len(content)
            self._position += len(content)
        return count

    def _piece(self, size: int) -> bytes:
        """At most `size` bytes of the part at the current position; none at the end."""
        number = bisect_right(self._ends, self._position)
        if number == len(self._parts):
            return b""
        part, offset = self._parts[number], self._position - (self._ends[number - 1] if number else 0)
        if isinstance(part, bytes):
            return part[offset : offset + size]
        self.base.seek(part[0] + offset)
        return self.base.read(min(size, part[1] - part[0] - offset))


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else max(0, part[1] - part[0])
