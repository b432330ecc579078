"""FLAC streams whose parameters change, several in one file, and FLAC in Ogg: found by their headers (RFC 9639)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.audio.formats.splice import Part

MAX_HEADER = 16
"""Bytes of the longest frame header."""
_TAIL = 2**17
_RATES = (0, 88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_BITS = (0, 8, 12, None, 16, 20, 24, 32)
SECOND = b"fLaC\0\0\0\x22"
SEVERAL = "several FLAC streams one after the other"


class StreamInfo(NamedTuple):
    """The parameters at the start of a stream."""

    sample_rate: int
    channels: int
    block_size: int
    """Samples of its shortest block, which is that of all frames of a stream of fixed block size."""
    frames: int
    """Samples per channel; 0 if unknown."""


class Frame(NamedTuple):
    """The header of a frame."""

    sample_rate: int
    """0: that of the stream."""
    channels: int
    first: int
    """Number of its first sample."""
    end: int
    """Number of the sample behind its last."""


def stream_info(stream: BinaryIO) -> StreamInfo | None:
    """The parameters of a native FLAC file; None for another."""
    stream.seek(0)
    head = stream.read(42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    return StreamInfo(packed >> 44, (packed >> 41 & 7) + 1, int.from_bytes(head[8:10], "big"), packed & (2**36 - 1))


def parse_frame(content: bytes, at: int, info: StreamInfo) -> Frame | None:
    """The header of the frame at a place of some bytes; None if there is none, by its checksum, too."""
    head = content[at : at + MAX_HEADER]
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size, rate, channels, bits = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    number, place = _coded_number(head)
    if size == 0 or rate == 15 or channels > 10 or bits == 3 or number is None:
        return None
    extra = {6: 1, 7: 2}.get(size, 0)
    block = int.from_bytes(head[place : place + extra], "big") + 1 if extra else _block_size(size)
    place += extra
    extra = {12: 1, 13: 2, 14: 2}.get(rate, 0)
    value = int.from_bytes(head[place : place + extra], "big") * {12: 1000, 14: 10}.get(rate, 1)
    place += extra
    if len(head) <= place or _crc8(head[: place + 1]):
        return None
    first = number if head[1] & 1 else number * info.block_size
    return Frame(value if extra else _RATES[rate], channels + 1 if channels < 8 else 2, first, first + block)


def _block_size(code: int) -> int:
    return 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)


def _coded_number(head: bytes) -> tuple[int | None, int]:
    """The number of a frame or sample, coded like UTF-8, and the place behind it."""
    first = head[4]
    if first < 0x80:
        return first, 5
    more = 8 - (first ^ 0xFF).bit_length()
    rest = head[5 : 4 + more]
    if not 2 <= more <= 7 or len(rest) < more - 1 or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, 0
    number = first & (0x7F >> more)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, 4 + more


def _table(polynomial: int, width: int) -> list[int]:
    values = []
    for byte in range(256):
        value = byte << (width - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (width - 1) & 1 else 0)
        values.append(value & ((1 << width) - 1))
    return values


_CRC8, _CRC16 = _table(0x107, 8), _table(0x18005, 16)


def _crc8(content: bytes) -> int:
    check = 0
    for byte in content:
        check = _CRC8[check ^ byte]
    return check


def _crc16(content: bytes) -> int:
    check = 0
    for byte in content:
        check = (check << 8 & 0xFFFF) ^ _CRC16[check >> 8 ^ byte]
    return check


def _is_same(frame: Frame, info: StreamInfo) -> bool:
    return frame.sample_rate in (0, info.sample_rate) and frame.channels == info.channels


def last_sample(stream: BinaryIO, info: StreamInfo) -> int | None:
    """The number of samples by the last frame of a file; None if no frame of the stream is near its end."""
    size = stream.seek(0, os.SEEK_END)
    for length in (_TAIL // 8, _TAIL):
        stream.seek(max(0, size - length))
        last = _last_frame(stream.read(length), info)
        if last:
            return last.end if _is_same(last, info) else None
    return None


def _last_frame(tail: bytes, info: StreamInfo) -> Frame | None:
    """The frame that ends a file: by its number, or by its checksum."""
    at, tries = len(tail), 0
    while (at := tail.rfind(b"\xff", 0, at)) >= 0 and tries < 4:
        frame = parse_frame(tail, at, info)
        if frame and (frame.end == info.frames or _crc16(tail[at:]) == 0):
            return frame
        tries += frame is not None
    return None


def find_fault(stream: BinaryIO, info: StreamInfo, end: int | None) -> str | None:
    """Why a file can't be read as one stream, or None: it holds several, of which libsndfile reads the first.

    `end` is its `last_sample`.
    """
    if not info.frames or end == info.frames:
        return None
    stream.seek(42)
    before = b""
    while content := stream.read(2**18):
        if SECOND in before + content:
            return SEVERAL
        before = content[-len(SECOND) :]
    return None


def with_frames(stream: BinaryIO, frames: int) -> list[Part]:
    """A native FLAC file with another number of samples in its header."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return [_head_of(stream.read(42), frames), (42, size)]


def _head_of(head: bytes, frames: int) -> bytes:
    packed = int.from_bytes(head[18:26], "big") >> 36 << 36 | frames
    return head[:18] + packed.to_bytes(8, "big") + head[26:]


def changed_frame(content: bytes, info: StreamInfo) -> Frame | None:
    """The first frame within some bytes of a file whose sample rate or channels are not those of the stream."""
    values = np.frombuffer(content, np.uint8)
    found = np.flatnonzero(values[:-3] == 0xFF)
    found = found[values[found + 1] & 0xFE == 0xF8]
    if not len(found):
        return None
    odd = ~_SAME_RATE[info.sample_rate if info.sample_rate in _RATES else 0][values[found + 2] & 15]
    odd |= ~_SAME_CHANNELS[info.channels][values[found + 3] >> 4]
    for at in found[odd]:
        frame = parse_frame(content, int(at), info)
        if frame and not _is_same(frame, info) and _is_whole(content, int(at), found, info):
            return frame
    return None


def _is_whole(content: bytes, at: int, syncs: NDArray[np.intp], info: StreamInfo) -> bool:
    """Whether a frame really begins at a place: its checksum is right up to a following frame, or the end."""
    following = [int(place) for place in syncs[syncs > at][:64] if parse_frame(content, int(place), info)]
    return any(_crc16(content[at:stop]) == 0 for stop in [*following[:4], len(content)] if stop - at < _TAIL)


def _same_rate(sample_rate: int) -> np.ndarray:
    """By rate code whether it is a rate; False for codes of rates that are spelled out behind the frame's number."""
    return np.array([code == 0 or rate == sample_rate for code, rate in enumerate((*_RATES, *4 * (None,)))])


_SAME_RATE = {rate: _same_rate(rate) for rate in _RATES}
_SAME_CHANNELS = {
    count: np.array([code == count - 1 or (count == 2 and code in (8, 9, 10)) for code in range(16)])
    for count in range(1, 9)
}


# FLAC in Ogg --------------------------------------------------------------------------------------------------------


def native_parts(stream: BinaryIO) -> list[Part] | None:
    """A FLAC stream in Ogg as a native one (RFC 9639, 10.1); None if the file holds none.

    Raises AudioError for a fault of the file.
    """
    stream.seek(0)
    head = stream.read(60)
    if head[:4] != b"OggS" or head[28:33] != b"\x7fFLAC":
        return None
    size = stream.seek(0, os.SEEK_END)
    parts: list[tuple[int, int]] = []
    serial, frames = head[14:18], 0
    for start, stop, owner, kind, granule in _pages(stream, size):
        if kind & 2 and parts:
            raise AudioError("several Ogg streams one after the other")
        if stop > size:
            raise AudioError(f"truncated: {stop - size} bytes of its last page are missing")
        if owner == serial:
            parts.append((start, stop))
            frames = granule if 0 < granule < 2**36 else frames
    start, stop = parts[0][0] + 9, parts[0][1]
    stream.seek(start)
    info = stream.read(42)
    if not int.from_bytes(info[18:26].ljust(8, b"\0"), "big") & (2**36 - 1):
        info = _head_of(info.ljust(42, b"\0"), frames)
    return [info, (start + 42, stop), *parts[1:]]


def _pages(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes, int, int]]:
    """Start and stop of the content of each page, serial number of its stream, flags and granule position."""
    at = 0
    while at + 27 <= size:
        stream.seek(at)
        head = stream.read(27 + 255)
        if head[:4] != b"OggS":
            at = _next_page(stream, at, size)
            continue
        start = at + 27 + head[26]
        at = start + sum(head[27 : 27 + head[26]])
        yield start, at, head[14:18], head[5], int.from_bytes(head[6:14], "little", signed=True)


def _next_page(stream: BinaryIO, at: int, size: int) -> int:
    """The place of the next page behind damaged bytes; the end of the file if there is none."""
    while at < size:
        stream.seek(at)
        content = stream.read(2**16)
        place = content.find(b"OggS")
        if place >= 0:
            return at + place
        at += max(1, len(content) - 3)
    return size
