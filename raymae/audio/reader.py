"""Open a recording of any supported format for reading: libsndfile is given what it reads rightly and wholly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from raymae.audio import mp3
from raymae.audio.errors import AudioError
from raymae.audio.headers import AudioChunk, find_audio, find_fault, with_size
from raymae.audio.splice import Spliced

UNKNOWN_FRAMES = 2**63 - 1
"""`Reader.frames` of a recording whose length only decoding tells."""

_MP3_IN_WAV = 0x55


class Reader(Protocol):
    """An open recording."""

    @property
    def samplerate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def frames(self) -> int:
        """Samples per channel, or `UNKNOWN_FRAMES`."""

    def seek(self, frames: int) -> int:
        """Go to a sample."""

    def read(self, frames: int, dtype: Any, always_2d: bool) -> NDArray[np.float32]:
        """The next samples (n, channels); fewer at the end."""


class _SequentialFile(soundfile.SoundFile):
    """Without the seek that soundfile adds to every read, which fails at the end of a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


@contextmanager
def open_reader(stream: BinaryIO) -> Iterator[Reader]:
    """Open the recording in a file.

    Raises AudioError for a fault of the file that its headers show, and soundfile's LibsndfileError.
    """
    chunk = find_audio(stream)
    fault = find_fault(stream, chunk)
    if fault:
        raise AudioError(fault)
    source = _arrange(stream, chunk)
    source.seek(0)
    # a file descriptor if there is one: decoding through a Python object's reads and seeks takes a tenth longer
    direct = isinstance(source, io.FileIO)
    with _SequentialFile(source.fileno() if direct else source, closefd=False) as file:
        yield file


def _arrange(stream: BinaryIO, chunk: AudioChunk | None) -> BinaryIO:
    """The file itself, or one made of its parts, which libsndfile reads wholly."""
    if chunk and chunk.codec == _MP3_IN_WAV:
        return _mp3(stream, chunk)
    if chunk:
        parts = with_size(stream, chunk)
        return stream if parts is None else io.BufferedReader(Spliced(stream, parts))
    return _mp3(stream, None)


def _mp3(stream: BinaryIO, chunk: AudioChunk | None) -> BinaryIO:
    if chunk is None:
        found = mp3.look(stream)
    else:
        stop = chunk.start + chunk.size if chunk.size and not chunk.is_open else chunk.file_size
        found = mp3.look(stream, chunk.start, stop)
    if found is None:
        return stream
    if found.fault:
        raise AudioError(found.fault)
    return io.BufferedReader(Spliced(stream, found.parts()))
