"""The length of a recording as `load` reads it, without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from raymae.audio.decode import open_audio
from raymae.audio.formats.av_reader import UNKNOWN_FRAMES


@dataclass(frozen=True, kw_only=True)
class Length:
    """Samples per channel and their rate, both of the file."""

    frames: int
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def length(source: str | Path | bytes | BinaryIO) -> Length | None:
    """The length of a file, of the bytes of an encoded file or of an open file; None where only decoding tells.

    From the headers, and for MP3s without a count from those of all frames, which takes reading the file. `load` then
    reads as many samples, give or take one after resampling, or refuses the recording.

    Raises AudioError as `raymae.audio.decode.load`, for what it notices before decoding.
    """
    with open_audio(source) as file:
        frames, sample_rate = file.count(), file.samplerate
    return Length(frames=frames, sample_rate=sample_rate) if frames != UNKNOWN_FRAMES else None
