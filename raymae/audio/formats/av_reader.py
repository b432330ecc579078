"""Recordings of phones, browsers and Windows (AAC, MP4, WebM, WMA, …), read by PyAV, FFmpeg's libraries.

What FFmpeg decodes is what is read: it drops the priming samples that a container names (an edit list, `CodecDelay`),
and of MP4 what lies behind the length of the track. An AAC file without a container (ADTS) names neither: its 1,024
priming samples and the rest of its last frame are read, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.audio.formats.boxes import find_fault

UNKNOWN_FRAMES = 2**63 - 1
"""`AvReader.frames` of a recording whose length its header doesn't tell exactly."""

_MAGIC = (
    (0, b"\x1a\x45\xdf\xa3", "matroska", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA"),
    (0, b"#!AMR", "amr", "AMR"),
    (8, b"AVI ", "avi", "AVI"),
    (4, b"ftyp", "mov", "MP4"),
    *((4, kind, "mov", "QuickTime") for kind in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")),
)
"""Offset and bytes that mark a container, its FFmpeg name, and the one that people know."""

_SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63, "flt": 1, "dbl": 1}

_CONSTANT = ("aac", "mp3", "mp3float", "ac3", "eac3", "amrnb", "amrwb")
"""Codecs all of whose packets hold the same number of samples."""


def container_of(head: bytes) -> tuple[str, str] | None:
    """FFmpeg's and the common name of the format that a file's first bytes mark, if PyAV is to read it."""
    if head[:1] == b"\xff" and len(head) > 5 and head[1] & 0xF6 == 0xF0:
        return "aac", "AAC"
    for offset, mark, name, known in _MAGIC:
        if head[offset : offset + len(mark)] == mark:
            return name, known
    return None


class AvReader:
    """The audio of a container, read forwards."""

    def __init__(self, stream: BinaryIO, name: str, known: str) -> None:
        """`name` and `known` as of `container_of`. Raises AudioError."""
        try:
            self._av: Any = importlib.import_module("av")
        except ImportError:
            raise AudioError(f"{known} needs PyAV: pip install 'raymae[formats]'") from None
        self._stream, self._name = stream, name
        self._container: Any = None
        if fault := find_fault(stream, name):
            raise AudioError(fault)
        try:
            self._restart()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.close()
        self._stream.seek(0)
        try:
            self._container = self._av.open(self._stream, format=self._name, metadata_errors="ignore")
        except self._av.FFmpegError as error:
            raise _undecodable(error) from None
        audio = self._container.streams.audio
        if not audio:
            raise AudioError("no audio in it")
        self._audio = audio[0]
        if self._audio.codec_context is None:
            raise AudioError("can't be decoded: FFmpeg doesn't know the codec of its audio")
        self._audio.codec_context.thread_count = 1

    def _restart(self) -> None:
        """Open the container and decode its first frames, which tell the sample rate."""
        self._open()
        self._decoded = self._decode()
        frames = list(islice(self._decoded, 2))
        if not frames:
            raise AudioError("no samples")
        self.samplerate, self.channels = frames[0].sample_rate, frames[0].layout.nb_channels
        self._first, self._step = frames[0], max(frame.samples for frame in frames)
        self._waiting = [self._samples(frame) for frame in frames]
        self._position = 0
        self.frames = self._stated()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def _stated(self) -> int:
        """The number of samples by the header of an MP4."""
        duration = self._audio.duration
        if self._name != "mov" or not duration or duration < 0:
            return UNKNOWN_FRAMES
        frames = round(duration * self._audio.time_base * self.samplerate)
        constant = self._audio.codec_context.name in _CONSTANT and self._audio.frames
        return min(frames, self._audio.frames * self._step) if constant else frames

    def _decode(self) -> Iterator[Any]:
        try:
            for packet in self._container.demux(self._audio):
                yield from packet.decode()
        except self._av.FFmpegError as error:
            raise _undecodable(error) from None

    def _samples(self, frame: Any) -> NDArray[np.float32]:
        """The samples (n, channels) of a frame."""
        if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
            raise AudioError("its sample rate or number of channels changes")
        kind = frame.format.name.removesuffix("p")
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, self.channels)
        if kind == "u8":
            values = values.astype(np.float32) - 2**7
        return values.astype(np.float32) / np.float32(_SCALE[kind])

    def read(self, frames: int, dtype: Any = "float32", always_2d: bool = True) -> NDArray[np.float32]:
        """The next samples (n, channels), n up to `frames`; fewer at the end. Raises AudioError."""
        wanted = min(frames, self.frames - self._position)
        blocks, count = [np.empty((0, self.channels), np.float32)], 0
        while count < wanted:
            block = self._waiting.pop(0) if self._waiting else self._next()
            if block is None:
                self._check_end(count)
                break
            if len(block) > wanted - count:
                self._waiting.insert(0, block[wanted - count :])
                block = block[: wanted - count]
            blocks.append(block)
            count += len(block)
        self._position += count
        return np.concatenate(blocks)

    def _next(self) -> NDArray[np.float32] | None:
        frame = next(self._decoded, None)
        return None if frame is None else self._samples(frame)

    def _check_end(self, count: int) -> None:
        """Raise AudioError if a container of audio alone ends half a second before the end that it states."""
        stated = (self._container.duration or 0) / self._av.time_base
        ended = (self._position + count) / self.samplerate
        alone = len(self._container.streams) == 1 and self._name == "matroska"
        if alone and ended < stated - 0.5:
            raise AudioError(f"truncated: {ended:.2f} of {stated:.2f} s")

    def seek(self, frames: int) -> int:
        """Go to a sample: by the container's index if that is exact, or by decoding from the start."""
        if frames < self._position or not self._jump(frames):
            self._restart()
        while self._position < frames and len(self.read(min(2**16, frames - self._position))):
            pass
        return self._position

    def _jump(self, frames: int) -> bool:
        """Go to a frame of the container before a sample; False if it isn't known exactly which one that is."""
        if self._name not in ("mov", "matroska") or frames - self._position < 2**16:
            return frames - self._position < 2**16
        start = self._first.pts or 0
        self._container.seek(start + int(frames / self.samplerate / self._audio.time_base), stream=self._audio)
        self._decoded = self._decode()
        frame = next(self._decoded, None)
        place = None if frame is None else self._place(frame)
        if place is None or place > frames:
            return False
        self._waiting, self._position = [self._samples(frame)], place
        return True

    def _place(self, frame: Any) -> int | None:
        """The number of a frame's first sample; None where the time stamps are too coarse to tell."""
        if frame.pts is None or self._first.pts is None:
            return None
        place = round((frame.pts - self._first.pts) * frame.time_base * self.samplerate)
        if frame.time_base * self.samplerate <= 1:
            return place
        after = place - self._first.samples
        snapped = self._first.samples + round(after / self._step) * self._step
        same = frame.samples == self._step and abs(snapped - place) <= frame.time_base * self.samplerate
        return snapped if same and self._audio.codec_context.name in (*_CONSTANT, "opus") else None

    def count(self) -> int:
        """The number of samples, from the headers of all packets if need be; `UNKNOWN_FRAMES` if only decoding tells.

        Nothing can be read afterwards.
        """
        codec = self._audio.codec_context.name
        if self.frames != UNKNOWN_FRAMES or codec not in (*_CONSTANT, "opus"):
            return self.frames
        step, total = self._step, 0
        self._open()
        try:
            for packet in self._container.demux(self._audio):
                if packet.size:
                    total += _opus_samples(bytes(packet)[:2]) if codec == "opus" else step
                    total -= sum(map(_skipped, packet.iter_sidedata()))
        except self._av.FFmpegError as error:
            raise _undecodable(error) from None
        return total


def _undecodable(error: Any) -> AudioError:
    return AudioError(f"can't be decoded: {' '.join((error.strerror or str(error)).split())[:150]}")


def _skipped(side_data: Any) -> int:
    """Samples that the decoder drops at the start and the end of a packet."""
    if side_data.data_type != "skip_samples":
        return 0
    content = bytes(side_data)
    return int.from_bytes(content[:4], "little") + int.from_bytes(content[4:8], "little")


def _opus_samples(head: bytes) -> int:
    """Samples at 48 kHz of a packet of Opus (RFC 6716, 3.1)."""
    config = head[0] >> 3
    sizes = (480, 960, 1920, 2880) if config < 12 else (480, 960) if config < 16 else (120, 240, 480, 960)
    count = {0: 1, 1: 2, 2: 2}.get(head[0] & 3) or (head[1] & 63 if len(head) > 1 else 0)
    return count * sizes[config % len(sizes)]
