"""Cut and joined MP4 and WMA files, of which FFmpeg reads what it finds, by their outer structure."""

from __future__ import annotations

import os
from typing import BinaryIO

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MAX_BOXES = 100_000


def find_fault(stream: BinaryIO, name: str) -> str | None:
    """Fault of a file of FFmpeg's format `name` as a whole, or None."""
    size = stream.seek(0, os.SEEK_END)
    return {"mov": _mp4, "asf": _asf}.get(name, lambda *_: None)(stream, size)


def _mp4(stream: BinaryIO, file_size: int) -> str | None:
    """A box that ends beyond the file, or a second index of a whole file (ISO 14496-12, 4.2)."""
    at, indices = 0, 0
    for _ in range(_MAX_BOXES):
        stream.seek(at)
        head = stream.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8 or not kind.isalnum():  # the last box may reach to the end; something else may follow
            break
        indices += kind == b"moov"
        at += size
        if at > file_size and kind in (b"moov", b"moof", b"mdat"):
            return f"truncated: {at - file_size} bytes of its box {kind.decode()} are missing"
    return "several MP4 files one after the other" if indices > 1 else None


def _asf(stream: BinaryIO, file_size: int) -> str | None:
    """Another size than its header states (ASF specification, 3.2); not a broadcast, whose header states none."""
    stream.seek(0)
    head = stream.read(2**16)
    at = head.find(_FILE_PROPERTIES)
    properties = head[at : at + 104]
    if at < 0 or len(properties) < 104 or properties[88] & 1:
        return None
    stated = int.from_bytes(properties[40:48], "little")
    if stated > file_size:
        return f"truncated: {stated - file_size} bytes are missing"
    stream.seek(stated)
    return "several WMA files one after the other" if stated and stream.read(16) == _ASF else None
