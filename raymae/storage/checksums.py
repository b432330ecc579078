"""Hashes of settings, and checksums of stored files."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, BinaryIO, Protocol

CHECKSUMS = "checksums.json"
"""The checksum of every file of a finished artifact, by its name."""


class Readable(Protocol):
    """A folder whose files can be opened."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        ...


def digest(value: Any) -> str:
    """Hash of `value` (anything that JSON can hold) as 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def crc32(content: bytes) -> str:
    """CRC-32 of a file's content, as 8 hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


def checksum_of(folder: Readable, name: str) -> str:
    """The same of a stored file, read a piece at a time."""
    found = 0
    with folder.open(name) as file:
        while piece := file.read(1 << 24):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"


def check_format(found: Any, expected: int, path: str) -> None:
    """Raise ValueError if a JSON file is of another version's format; a file without a number is of format 1."""
    if found != expected:
        raise ValueError(f"{path} is of format {found}; this version of raymae reads format {expected}")
