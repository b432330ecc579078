"""Open a recording of any supported format for reading: libsndfile is given what it reads rightly and wholly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.audio.formats import flac, mp3
from raymae.audio.formats.av_reader import AvReader, container_of
from raymae.audio.formats.headers import AudioChunk, find_audio, find_fault, with_size
from raymae.audio.formats.quiet import quiet
from raymae.audio.formats.splice import Part, Spliced

_MP3_IN_WAV = 0x55
_HEAD = 64


class Reader(Protocol):
    """An open recording."""

    @property
    def samplerate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def frames(self) -> int:
        """Samples per channel; `UNKNOWN_FRAMES` if the header doesn't tell."""

    def seek(self, frames: int) -> int:
        """Go to a sample."""

    def read(self, frames: int, dtype: Any, always_2d: bool) -> NDArray[np.float32]:
        """The next samples (n, channels); fewer at the end."""

    def count(self) -> int:
        """Samples per channel, from a pass over the file if need be; `UNKNOWN_FRAMES` if only decoding tells."""


class _SoundFile(soundfile.SoundFile):
    def seekable(self) -> bool:
        """False: soundfile would seek before every read, which fails at the end of a FLAC of unknown length."""
        return False

    def count(self) -> int:
        return self.frames


class _MpegFile(_SoundFile):
    """An MP3, whose decoder prints what it finds odd."""

    def __init__(self, source: Any, **options: Any) -> None:
        with quiet():
            super().__init__(source, **options)

    def seek(self, frames: int, whence: int = io.SEEK_SET) -> int:
        with quiet():
            return super().seek(frames, whence)

    def read(self, *args: Any, **options: Any) -> NDArray[np.float32]:
        with quiet():
            return super().read(*args, **options)


class _FlacFile(_SoundFile):
    """A FLAC stream; what was read is searched for frames of another sample rate, which libsndfile ignores.

    Only where a second look at the file costs next to nothing: on disk or in memory.
    """

    def __init__(self, source: Any, stream: BinaryIO, info: flac.StreamInfo, end: int | None) -> None:
        super().__init__(source, closefd=False)
        self._stream, self._parameters, self._end = stream, info, end
        self._searched = 0 if isinstance(stream, io.FileIO | io.BytesIO) else None

    def count(self) -> int:
        return self._end or self.frames

    def seek(self, frames: int, whence: int = io.SEEK_SET) -> int:
        place = super().seek(frames, whence)
        if self._searched is not None:
            self._searched = max(0, self._stream.tell() - 2**16)
        return place

    def read(self, *args: Any, **options: Any) -> NDArray[np.float32]:
        block: NDArray[np.float32] = super().read(*args, **options)
        if self._searched is not None:
            self._search(self._searched)
        return block

    def _search(self, start: int) -> None:
        stop = self._stream.tell()
        self._stream.seek(start)
        content = self._stream.read(stop - start + 2**14)
        self._stream.seek(stop)
        self._searched = max(start, stop - flac.MAX_HEADER)
        if content.find(flac.SECOND, max(4, len(content) - 2**16)) >= 0:  # behind the last frame that was read
            raise AudioError(flac.SEVERAL)
        if frame := flac.changed_frame(content, self._parameters):
            old = f"{self._parameters.channels} channels at {self._parameters.sample_rate} Hz"
            rate = frame.sample_rate or self._parameters.sample_rate
            raise AudioError(f"changes from {old} to {frame.channels} channels at {rate} Hz")


@contextmanager
def open_reader(stream: BinaryIO) -> Iterator[Reader]:
    """Open the recording in a file.

    Raises AudioError for a fault of the file that its headers show, and soundfile's LibsndfileError.
    """
    head = _head(stream)
    if name := container_of(head):
        with closing(AvReader(stream, *name)) as reader:
            yield reader
        return
    with _open_soundfile(stream, head) as file:
        yield file


def _head(stream: BinaryIO) -> bytes:
    """The first bytes of a file, behind an ID3v2 tag."""
    stream.seek(0)
    head = stream.read(_HEAD)
    if head[:3] == b"ID3":
        stream.seek(mp3.id3_size(head))
        head = stream.read(_HEAD) or head
    return head


def _open_soundfile(stream: BinaryIO, head: bytes) -> _SoundFile:
    """The file itself, or one made of its parts, as libsndfile reads it wholly."""
    chunk = find_audio(stream)
    if fault := find_fault(stream, chunk):
        raise AudioError(fault)
    if head[:4] == b"fLaC":
        return _open_flac(stream)
    if head[28:33] == b"\x7fFLAC" and (pieces := flac.native_parts(stream)):
        return _SoundFile(_source(stream, pieces), closefd=False)
    if chunk and chunk.codec != _MP3_IN_WAV:
        return _SoundFile(_source(stream, with_size(stream, chunk)), closefd=False)
    found = mp3.look(stream, *_span(chunk))
    if found and found.fault:
        raise AudioError(found.fault)
    kind = _SoundFile if head[:4] == b"OggS" else _MpegFile  # libsndfile looks for frames of MP3 in unknown files, too
    return kind(_source(stream, found.parts() if found else None), closefd=False)


def _open_flac(stream: BinaryIO) -> _SoundFile:
    info = flac.stream_info(stream)
    if info is None:
        return _SoundFile(_source(stream), closefd=False)
    end = flac.last_sample(stream, info)
    if fault := flac.find_fault(stream, info, end):
        raise AudioError(fault)
    more = end is not None and 0 < info.frames < end  # its header counts too few
    return _FlacFile(_source(stream, flac.with_frames(stream, end) if more and end else None), stream, info, end)


def _span(chunk: AudioChunk | None) -> tuple[int, int | None]:
    """Start and stop of an MP3 in a WAV file."""
    if chunk is None:
        return 0, None
    return chunk.start, chunk.start + chunk.size if chunk.size and not chunk.is_open else chunk.file_size


def _source(stream: BinaryIO, parts: list[Part] | None = None) -> Any:
    """What soundfile opens: a file made of parts of another, or the file itself, rewound.

    A file descriptor if there is one: decoding through a Python object's reads and seeks takes a tenth longer.
    """
    if parts is not None:
        return io.BufferedReader(Spliced(stream, parts), 2**16)
    stream.seek(0)
    return stream.fileno() if isinstance(stream, io.FileIO) else stream
