"""Recordings longer than a clip, as consecutive windows: decoded once, in bounded memory.

A window's samples depend on the recording and its place alone, not on which other windows are read with it: to be
resampled, it is cut with some samples on either side. So training, evaluation and prediction read the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, gcd, inf
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr

from raymae.audio.decode import FloatArray, full_scale, open_audio, read_mono, too_long
from raymae.audio.errors import AudioError
from raymae.audio.formats.av_reader import UNKNOWN_FRAMES
from raymae.audio.reader import Reader
from raymae.audio.spans import Span
from raymae.config import AudioConfig

Source = str | Path | bytes | BinaryIO

SHORTEST = 20
"""A rest at the end of a recording is a window if it has this part of a clip, and an FFT's samples."""
MARGIN = 400
"""Samples, at the lower of the two rates, on either side of a window: more than the resampler's filter reaches."""
LEAD_FRAMES = 2**14
"""Decoded and dropped after a jump: MP3 frames need the bit reservoir of earlier ones."""
JUMP_SECONDS = 20.0
"""A gap from which on the decoder jumps instead of decoding it."""


def least_samples(audio: AudioConfig) -> int:
    """Samples of the shortest rest at the end of a recording that is a window of its own.

    Encoders add some milliseconds to a recording of exactly a clip's length.
    """
    return max(audio.n_fft, audio.n_samples // SHORTEST)


def window_starts(n_samples: int, audio: AudioConfig) -> range:
    """First samples of the windows of a recording of `n_samples`, at least one."""
    return range(0, max(1, n_samples - least_samples(audio) + 1), audio.n_samples)


def read_windows(
    source: Source, audio: AudioConfig, max_seconds: float | None = None
) -> Iterator[tuple[int, FloatArray]]:
    """The windows of a whole recording, of any length: first sample, and samples at the front end's rate.

    Raises AudioError as `raymae.audio.decode.load`, where it is noticed: windows before it have been read.
    """
    with open_audio(source) as file:
        parts, start = _Parts(file, audio.sample_rate, max_seconds), 0
        while True:
            waveform = parts.read(start, start + audio.n_samples)
            if start and len(waveform) < least_samples(audio):
                return
            if not len(waveform):
                raise AudioError(f"too short: no sample at {audio.sample_rate} Hz")
            yield start, waveform
            start += audio.n_samples
            if len(waveform) < audio.n_samples:
                return


def read_spans(source: Source, audio: AudioConfig, spans: Iterable[Span]) -> Iterator[FloatArray]:
    """The samples of some parts of a recording, in ascending order, each at most a clip long.

    Raises AudioError as `raymae.audio.decode.load`, and for a part that begins after the end.
    """
    rate = audio.sample_rate
    with open_audio(source) as file:
        parts = _Parts(file, rate)
        for begin, end in spans:
            start = round((begin or 0.0) * rate)
            stop = start + audio.n_samples if end is None else min(round(end * rate), start + audio.n_samples)
            waveform = parts.read(start, stop)
            if not (start or len(waveform)):
                raise AudioError(f"too short: no sample at {rate} Hz")
            if not len(waveform):
                raise AudioError(f"only {parts.seconds:.2f} s long, but the part starts at {start / rate:g} s")
            yield waveform


class _Parts:
    """Reads parts of an open recording, forwards; holds one part and what it has been decoded beyond."""

    def __init__(self, file: Reader, sample_rate: int, max_seconds: float | None = None) -> None:
        self.file, self.rate, self.native = file, sample_rate, file.samplerate
        self.scale = _scale(file)
        self.limit = inf if max_seconds is None else max_seconds * self.native
        if file.frames != UNKNOWN_FRAMES and file.frames > self.limit:
            raise too_long(int(self.limit), self.native)
        self.step = self.native // gcd(self.native, sample_rate)
        """Samples of the file from one that falls on a resampled one to the next that does; parts begin at those."""
        self.margin = ceil(MARGIN * max(1.0, self.native / sample_rate)) if self.native != sample_rate else 0
        self.samples = np.empty(0, np.float32)
        self.first = 0
        """Number of the first of the samples."""
        self.ended = False

    @property
    def seconds(self) -> float:
        """The end of what has been decoded."""
        return (self.first + len(self.samples)) / self.native

    def read(self, start: int, stop: int) -> FloatArray:
        """Samples start … stop of the resampled recording; fewer at its end."""
        first = max(0, (start * self.native // self.rate - self.margin) // self.step * self.step)
        self._decode(first, ceil(stop * self.native / self.rate) + self.margin)
        waveform = self.samples[: ceil(stop * self.native / self.rate) + self.margin - first]
        if self.native != self.rate and len(waveform):
            waveform = soxr.resample(waveform, self.native, self.rate, quality="HQ")
        skipped = start - first * self.rate // self.native
        waveform = waveform[skipped : skipped + stop - start]
        if not np.isfinite(waveform).all():
            raise AudioError("NaN or infinite samples")
        return waveform

    def _decode(self, first: int, last: int) -> None:
        """Hold the samples from `first` on, up to `last` or the end of the recording."""
        self._drop(first)
        end = self.first + len(self.samples)
        if first - end > JUMP_SECONDS * self.native:
            end = self.first = min(max(0, first - LEAD_FRAMES), self.file.frames)
            self.file.seek(end)
        if last > end and not self.ended:
            new = read_mono(self.file, last - end)
            self.ended = len(new) < last - end
            self.samples = np.concatenate([self.samples, new if self.scale == 1 else new / np.float32(self.scale)])
            self._check(end + len(new))
        self._drop(first)

    def _drop(self, first: int) -> None:
        """Drop the samples before `first`."""
        count = min(max(0, first - self.first), len(self.samples))
        self.samples, self.first = self.samples[count:], self.first + count

    def _check(self, end: int) -> None:
        frames = self.file.frames
        if end > self.limit:
            raise too_long(int(self.limit), self.native)
        if self.ended and frames != UNKNOWN_FRAMES and end < frames:
            raise AudioError(f"truncated: {end} of {frames} frames")


def _scale(file: Reader) -> float:
    """What the samples are divided by (`full_scale`): for files of floats, their peak has to be known."""
    if getattr(file, "subtype", "") not in ("FLOAT", "DOUBLE"):
        return 1.0
    peak = 0.0
    while len(block := read_mono(file, 2**20)):
        peak = max(peak, float(np.abs(block).max()))
    file.seek(0)
    return full_scale(peak)
