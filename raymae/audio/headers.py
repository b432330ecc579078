"""Truncated and chained audio files, which libsndfile reads without an error, found by their headers."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

_UNKNOWN_SIZE = 2**32 - 1
_MAX_CHUNKS = 1_000
_OGG_PAGE = 65_307  # bytes of the largest page


class _Chunks(NamedTuple):
    """Chunk layout of a format: offset of the first chunk, struct of the chunk header, name of the audio chunk."""

    first: int
    header: str
    audio: bytes
    counted: int = 0
    """Bytes of the chunk header that its size includes."""
    align: int = 2


_FORMATS = {
    b"RIFF": _Chunks(12, "<4sI", b"data"),
    b"RIFX": _Chunks(12, ">4sI", b"data"),
    b"RF64": _Chunks(12, "<4sI", b"data"),
    b"FORM": _Chunks(12, ">4sI", b"SSND"),
    b"riff": _Chunks(40, "<16sq", b"data", counted=24, align=8),  # Sony's W64
    b"caff": _Chunks(8, ">4sq", b"data", align=1),
}


def find_fault(stream: BinaryIO) -> str | None:
    """Fault of a file as a whole, or None; the stream is rewound.

    Faults are an empty file, an audio chunk that by its size ends beyond the end of the file (WAV in all variants,
    AIFF, AU, W64, CAF), and chained Ogg streams, of which libsndfile reads only the first.
    """
    size = stream.seek(0, os.SEEK_END)
    missing = _audio_end(stream, size) - size
    chained = _is_chained(stream, size)
    stream.seek(0)
    if not size:
        return "empty file"
    if missing > 0:
        return f"truncated: {missing} bytes of its data chunk are missing"
    return "several Ogg streams one after the other" if chained else None


def _audio_end(stream: BinaryIO, file_size: int) -> int:
    """End of the audio, in bytes, according to the header; 0 if the header doesn't say."""
    stream.seek(0)
    magic = stream.read(4)
    if magic in (b".snd", b"dns."):  # AU, in either byte order
        start, size = struct.unpack(">II" if magic == b".snd" else "<II", stream.read(8).ljust(8, b"\0"))
        return 0 if size == _UNKNOWN_SIZE else start + size
    chunks = _FORMATS.get(magic)
    if chunks is None:
        return 0
    position, long_size = chunks.first, 0
    for _ in range(_MAX_CHUNKS):
        stream.seek(min(position, file_size))
        header = stream.read(struct.calcsize(chunks.header))
        if len(header) < struct.calcsize(chunks.header):
            break
        name, size = struct.unpack(chunks.header, header)
        size -= chunks.counted
        position += len(header)
        if size < 0:
            break
        if name[:4] == chunks.audio:
            return position + (long_size if size == _UNKNOWN_SIZE else size)
        if name == b"ds64":  # 64-bit sizes of an RF64 file: of the file, then of its data
            long_size = int.from_bytes(stream.read(16)[8:], "little")
        position += size + -size % chunks.align
    return 0


def _is_chained(stream: BinaryIO, file_size: int) -> bool:
    """Whether the last page of an Ogg file belongs to another stream than those that begin at its start."""
    stream.seek(0)
    if stream.read(4) != b"OggS":
        return False
    stream.seek(0)
    head = stream.read(_OGG_PAGE)
    begun, page = set(), 0
    while head.startswith(b"OggS", page) and len(head) >= page + 27 and head[page + 5] & 2:  # begins a stream
        begun.add(head[page + 14 : page + 18])
        segments = head[page + 26]
        page += 27 + segments + sum(head[page + 27 : page + 27 + segments])
    stream.seek(max(0, file_size - _OGG_PAGE))
    tail = stream.read(_OGG_PAGE)
    last = tail.rfind(b"OggS\0", 0, len(tail) - 13)
    return bool(begun) and last >= 0 and tail[last + 14 : last + 18] not in begun
