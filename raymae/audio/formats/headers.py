"""Truncated and chained audio files, which libsndfile reads without an error, found by their headers."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

from raymae.audio.formats.splice import Part

_UNKNOWN_SIZE = 2**32 - 1
_MAX_CHUNKS = 1_000
_OGG_PAGE = 65_307  # bytes of the largest page
_PLACEHOLDERS = ((0x7FFF0000, 0x80010000), (0xFFFF0000, _UNKNOWN_SIZE))
"""Sizes that programs write to a pipe, before they know it: the largest multiple of something below 2^31 or 2^32."""


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


class AudioChunk(NamedTuple):
    """The chunk of a file that holds its audio."""

    magic: bytes
    """The first four bytes of the file."""
    start: int
    """Offset of the audio, in bytes."""
    size: int
    """Bytes of audio that the header claims."""
    file_size: int
    codec: int = 0
    """WAV's format tag."""

    @property
    def missing(self) -> int:
        """Bytes by which the audio ends beyond the file, if its size was filled in at all."""
        return 0 if self.is_open else max(0, self.start + self.size - self.file_size)

    @property
    def is_open(self) -> bool:
        """Whether the size is what a program writes before it knows the size."""
        if self.magic not in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            return False
        return any(low <= self.size <= high for low, high in _PLACEHOLDERS)


def find_fault(stream: BinaryIO, chunk: AudioChunk | None) -> str | None:
    """Fault of a file with an audio chunk as a whole, or None; the stream is rewound.

    Faults are an empty file, an audio chunk that by its size ends beyond the end of the file (WAV in all variants,
    AIFF, AU, W64, CAF), and chained Ogg streams, of which libsndfile reads only the first.
    """
    size = stream.seek(0, os.SEEK_END) if chunk is None else chunk.file_size
    chained = chunk is None and _is_chained(stream, size)
    stream.seek(0)
    if not size:
        return "empty file"
    if chunk and chunk.missing:
        return f"truncated: {chunk.missing} bytes of its data chunk are missing"
    return "several Ogg streams one after the other" if chained else None


def find_audio(stream: BinaryIO) -> AudioChunk | None:
    """The audio chunk of a WAV (in all variants), AIFF, AU, W64 or CAF file; None for others and where it has none."""
    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    magic = stream.read(4)
    if magic in (b".snd", b"dns."):  # AU, in either byte order
        start, size = struct.unpack(">II" if magic == b".snd" else "<II", stream.read(8).ljust(8, b"\0"))
        return None if size == _UNKNOWN_SIZE else AudioChunk(magic, start, size, file_size)
    chunks = _FORMATS.get(magic)
    return None if chunks is None else _find_chunk(stream, magic, chunks, file_size)


def _find_chunk(stream: BinaryIO, magic: bytes, chunks: _Chunks, file_size: int) -> AudioChunk | None:
    position, long_size, codec = chunks.first, None, 0
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
            known = size if size != _UNKNOWN_SIZE or long_size is None else long_size
            return AudioChunk(magic, position, known, file_size, codec)
        if name == b"ds64":  # 64-bit sizes of an RF64 file: of the file, then of its data
            long_size = int.from_bytes(stream.read(16)[8:], "little")
        if name == b"fmt ":
            codec = int.from_bytes(stream.read(2), "big" if magic == b"RIFX" else "little")
        position += size + -size % chunks.align
    return None


def with_size(stream: BinaryIO, chunk: AudioChunk) -> list[Part] | None:
    """A WAV file whose size was never filled in, with its size; None where libsndfile finds the end by itself."""
    size, rest = chunk.file_size - chunk.start, chunk.start + chunk.size < chunk.file_size
    if chunk.magic not in (b"RIFF", b"RIFX", b"RF64") or not rest:
        return None  # libsndfile cuts a size to the file
    if (chunk.size and not chunk.is_open) or _is_chunks(stream, chunk):
        return None
    order = ">I" if chunk.magic == b"RIFX" else "<I"
    if size < _UNKNOWN_SIZE:
        head = b"RIFX" if order == ">I" else b"RIFF"
        start = head + struct.pack(order, min(chunk.file_size - 8, _UNKNOWN_SIZE)) + b"WAVE"
        return [start, (12, chunk.start - 4), struct.pack(order, size), (chunk.start, chunk.file_size)]
    if order == ">I":
        return None
    long_sizes = b"ds64" + struct.pack("<IQQQI", 28, chunk.file_size + 28, size, 0, 0)
    start = b"RF64" + b"\xff" * 4 + b"WAVE" + long_sizes
    return [start, (12, chunk.start - 4), b"\xff" * 4, (chunk.start, chunk.file_size)]


def _is_chunks(stream: BinaryIO, chunk: AudioChunk) -> bool:
    """Whether other chunks, up to the end of the file, follow an audio chunk of the size that its header claims."""
    order = ">4sI" if chunk.magic == b"RIFX" else "<4sI"
    position = chunk.start + chunk.size + chunk.size % 2
    while position + 8 <= chunk.file_size:
        stream.seek(position)
        name, size = struct.unpack(order, stream.read(8).ljust(8, b"\0"))
        if not name.isascii() or not name.decode("ascii").isprintable():
            return False
        position += 8 + size + size % 2
    return position - 1 <= chunk.file_size


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
