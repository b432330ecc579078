"""The frames of an MPEG audio stream (MP3), found by their headers without decoding.

libsndfile takes the number of samples from the first frame, if that is an encoder's Xing or Info frame, or else guesses
it from the bit rate of the first frame and the size of the file. Where the guess or the count is wrong, it is given the
frames alone, behind an Info frame that holds their true number.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from raymae.audio.formats.splice import Part

_SMALL, _LARGE = 2**11, 2**18
_DECODER_DELAY = 529
_ROOM = 192
"""Bytes of the smallest frame that libsndfile searches for all fields of a Xing frame."""
_LOOK = 2**16
"""Bytes behind the end of a tag, or of a damaged frame, in which the next frame is searched for at a time."""

_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates by MPEG version (2 is 2.5, too) and layer, from index 1 on (ISO 11172-3, 13818-3)."""
_RATES = (44_100, 48_000, 32_000)


class Header(NamedTuple):
    """What the four bytes at the start of a frame say."""

    layer: int
    version: int
    """1, or 2 for MPEG 2 and 2.5."""
    sample_rate: int
    channels: int
    size: int
    """Bytes of the frame, its header included."""
    samples: int
    """Samples of the frame, per channel."""

    @property
    def kind(self) -> tuple[int, int, int]:
        """What all frames of a stream have in common."""
        return self.layer, self.sample_rate, self.channels

    @property
    def side_info(self) -> int:
        """Bytes between the header and the data of a frame of layer 3."""
        return (32 if self.channels == 2 else 17) if self.version == 1 else (17 if self.channels == 2 else 9)


@lru_cache(maxsize=2**14)
def parse_header(word: bytes) -> Header | None:
    """The header in four bytes; None if they are none, or one of a frame whose size it doesn't say (free format)."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE0 != 0xE0:
        return None
    code, layer = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3)
    bits, rate = word[2] >> 4, word[2] >> 2 & 3
    if code == 1 or layer == 4 or bits in (0, 15) or rate == 3 or word[3] & 3 == 2:
        return None
    version = 1 if code == 3 else 2
    sample_rate = _RATES[rate] // {3: 1, 2: 2, 0: 4}[code]
    samples = 384 if layer == 1 else 576 if layer == 3 and version == 2 else 1152
    slot = 4 if layer == 1 else 1
    slots = samples // 8 // slot * 1000 * _KBITS[version, layer][bits - 1] // sample_rate
    size = (slots + (word[2] >> 1 & 1)) * slot
    return Header(layer, version, sample_rate, 1 if word[3] >> 6 == 3 else 2, size, samples)


class Encoder(NamedTuple):
    """What an encoder's Xing or Info frame says; None where it doesn't."""

    frames: int | None
    size: int | None
    """Bytes of the stream, this frame included."""
    delay: int
    """Samples at the start that the encoder added."""
    padding: int
    """Samples at the end that the encoder added."""


def encoder_frame(frame: bytes) -> Encoder | None:
    """What a whole frame says if it is a Xing or Info frame (LAME's tag, revision 1); None for a frame of audio."""
    header = parse_header(frame[:4])
    if header is None or header.layer != 3:
        return None
    at = 4 + header.side_info
    if frame[at : at + 4] not in (b"Xing", b"Info") or len(frame) < at + 8:
        return None
    flags, at = frame[at + 7], at + 8
    values = []
    for bit in (1, 2):
        values.append(int.from_bytes(frame[at : at + 4], "big") if flags & bit else None)
        at += 4 * bool(flags & bit)
    at += 100 * bool(flags & 4) + 4 * bool(flags & 8)
    gaps = int.from_bytes(frame[at + 21 : at + 24], "big") if frame[at : at + 1] > b"\0" else 0
    return Encoder(values[0], values[1], gaps >> 12, gaps & 0xFFF)


@dataclass(frozen=True, kw_only=True)
class Mpeg:
    """The frames of a file."""

    header: Header
    """Of the first frame."""
    frames: int
    """Whole frames of audio, those of encoders' Xing frames not counted."""
    spans: list[tuple[int, int]]
    """Start and stop of the runs of these frames, in bytes."""
    encoders: list[Encoder]
    """The Xing frames, one at the start of each stream that has one."""
    encoder_first: bool
    """Whether the first frame is a Xing frame."""
    fault: str | None = None

    def parts(self) -> list[Part]:
        """The audio as one stream of layer 3: a new Info frame and the runs of frames.

        Samples that encoders added are left out at the start of the first stream and at the end of the last, where
        Xing frames say how many. Otherwise all are kept: a decoder that knows the number of frames drops the
        `_DECODER_DELAY` first samples, so a silent frame precedes them, to be dropped in their place.
        """
        delay = self.encoders[0].delay if self.encoder_first else 0
        silent = not delay
        padding = self.encoders[-1].padding if self.encoders else 0
        word = self._first_word()
        size = parse_header(word).size  # type: ignore[union-attr]
        gaps = (self.header.samples - _DECODER_DELAY if silent else delay) << 12 | (padding or _DECODER_DELAY)
        length = size * (1 + silent) + sum(stop - start for start, stop in self.spans)
        info = b"Info" + struct.pack(">III", 3, self.frames + silent, length)
        info += b"LAME3.100".ljust(21, b"\0") + gaps.to_bytes(3, "big")
        info = (word.ljust(4 + self.header.side_info, b"\0") + info).ljust(size, b"\0")
        return [info, word.ljust(size, b"\0") if silent else b"", *self.spans]

    def _first_word(self) -> bytes:
        """The header of a frame of this stream with room for a Xing frame's fields."""
        head = self.header
        code = {1: 3, 2: 2 if head.sample_rate >= 16_000 else 0}[head.version]
        rate = _RATES.index(head.sample_rate * {3: 1, 2: 2, 0: 4}[code])
        mode = 0xC0 if head.channels == 1 else 0
        words = [bytes([0xFF, 0xE3 | code << 3, bits << 4 | rate << 2, mode]) for bits in range(1, 15)]
        return next(word for word in words if parse_header(word).size >= _ROOM)  # type: ignore[union-attr]


class _Window:
    """Random access to a part of a file: a little at first, larger pieces while it is read forwards."""

    def __init__(self, stream: BinaryIO, stop: int | None = None) -> None:
        self.stop = stream.seek(0, os.SEEK_END) if stop is None else stop
        self._stream, self._start, self._content, self._size = stream, 0, b"", _SMALL

    def get(self, start: int, size: int) -> bytes:
        """The bytes from `start` on, fewer at the end."""
        size = max(0, min(size, self.stop - start))
        offset = start - self._start
        if offset < 0 or offset + size > len(self._content):
            near = bool(self._content) and 0 <= offset <= len(self._content)
            self._size = min(4 * self._size, _LARGE) if near else _SMALL
            self._stream.seek(start)
            self._start, self._content, offset = start, self._stream.read(max(size, self._size)), 0
        return self._content[offset : offset + size]


def look(stream: BinaryIO, start: int = 0, stop: int | None = None) -> Mpeg | None:
    """The frames of an MPEG stream, without what is no frame: tags, zeros, damaged bytes.

    None: the stream can be left to libsndfile, as its Xing frame agrees with its size, or as its frames have no size of
    their own (free format).
    """
    window = _Window(stream, stop)
    if start == 0 and window.get(0, 1) not in (b"I", b"\xff", b"\0"):
        return None
    first = _skip_tags(window, start)
    header = parse_header(window.get(first, 4))
    if header is None or header.layer != 3 or not _is_frame(window, first, None):
        return None
    encoder = encoder_frame(window.get(first, header.size))
    if encoder and stop is None and window.get(0, 1) != b"\0" and _agrees(window, first, encoder):
        return None
    return _walk(window, first, header)


def _agrees(window: _Window, first: int, encoder: Encoder) -> bool:
    """Whether a stream ends where its Xing frame says: at the end of the file, or before tags and zeros."""
    if not encoder.frames or not encoder.size:
        return False
    end = first + encoder.size
    return end <= window.stop and _skip_tags(window, end) >= window.stop


def _walk(window: _Window, at: int, first: Header) -> Mpeg:
    """Follow the frames from `at` to the end."""
    kind, mark = first.kind, 4 + first.side_info
    frames, spans, encoders, fault, begin, start = 0, [], [], None, at, at
    while at < window.stop:
        header = parse_header(window.get(at, 4))
        if header is None or header.kind != kind:
            spans.append((begin, at))
            if header and _is_frame(window, at, None):
                fault = "several MP3 streams of different sample rates or channels one after the other"
                break
            begin = at = _next(window, at, kind)
            continue
        if at + header.size > window.stop:
            fault = f"truncated: {at + header.size - window.stop} bytes of its last frame are missing"
            break
        if header.layer == 3 and window.get(at + mark, 4) in (b"Xing", b"Info"):
            encoders.append(encoder_frame(window.get(at, header.size)) or Encoder(None, None, 0, 0))
            spans.append((begin, at))
            begin = at + header.size
        else:
            frames += 1
        at += header.size
    promised = sum(encoder.frames or 0 for encoder in encoders)
    if not fault and frames < promised - len(encoders):
        fault = f"truncated: {frames} of {promised} MP3 frames"
    spans = [span for span in [*spans, (begin, min(at, window.stop))] if span[1] > span[0]]
    at_start = bool(encoders) and (not spans or spans[0][0] > start)
    return Mpeg(header=first, frames=frames, spans=spans, encoders=encoders, encoder_first=at_start, fault=fault)


def _next(window: _Window, at: int, kind: tuple[int, int, int]) -> int:
    """The next frame behind a tag or damaged bytes; the end of the file if there is none."""
    if (end := _skip_tags(window, at)) > at:
        return end
    at += 1
    while at < window.stop:
        content = window.get(at, _LOOK)
        place = content.find(b"\xff")
        while place >= 0:
            if _is_frame(window, at + place, kind):
                return at + place
            place = content.find(b"\xff", place + 1)
        at += len(content)
    return window.stop


def _skip_tags(window: _Window, at: int) -> int:
    """The end of the tags and zeros at a position."""
    while at < window.stop:
        end = _tag_end(window, at)
        if end <= at:
            return at
        at = end
    return window.stop


def _tag_end(window: _Window, at: int) -> int:
    """The end of the tag, or of the run of zeros, at a position; the position itself if there is none."""
    head = window.get(at, 32)
    if head[:3] == b"ID3" and len(head) >= 10:
        return at + id3_size(head)
    if head[:4] == b"TAG+":
        return at + 227
    if head[:3] == b"TAG":
        return at + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:  # at its start: the size counts all but the header
        return at + 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    if head[:11] == b"LYRICSBEGIN":
        return _after(window, at, (b"LYRICS200", b"LYRICSEND"))
    if head[:1] == b"\0":
        content = window.get(at, _LOOK)
        return at + len(content) - len(content.lstrip(b"\0"))
    return at


def id3_size(head: bytes) -> int:
    """Bytes of an ID3v2 tag that begins with `head` (10 bytes or more)."""
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    return 10 + size + 10 * bool(head[5:6] > b"\x0f" and head[5] & 0x10)


def _after(window: _Window, at: int, marks: tuple[bytes, ...]) -> int:
    content = window.get(at, _LOOK)
    return max((at + content.find(mark) + len(mark) for mark in marks if mark in content), default=at)


def _is_frame(window: _Window, at: int, kind: tuple[int, int, int] | None) -> bool:
    """Whether a frame (of a kind) begins at a position: it has a header, and another one, or the end, follows it."""
    header = parse_header(window.get(at, 4))
    if header is None or (kind and header.kind != kind):
        return False
    following = window.get(at + header.size, 4)
    after = parse_header(following)
    return at + header.size >= window.stop or (after is not None and after.kind == header.kind)
