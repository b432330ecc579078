"""Models that take recordings of any length, window by window. Works without Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymae.audio.decode import FloatArray
from raymae.audio.errors import AudioError, SilentError
from raymae.audio.logmel import LogMel, fit_length, is_silent
from raymae.audio.waveform import Source, read_waveform
from raymae.audio.windows import read_windows, window_starts
from raymae.config import AudioConfig

BATCH = 16
"""Windows of a forward pass."""

Values = NDArray[np.float32]

Named = TypeVar("Named")

Window = tuple[float, float, Values | None]
"""Start and end in seconds, and the values (V,) of a window of a recording; None for a silent one."""


@dataclass(frozen=True)
class Clip:
    """A window of a recording, of the model's clip length or shorter."""

    start: float
    """Seconds."""
    end: float
    log_mel: FloatArray
    """(n_frames, F), padded at its end."""
    valid_frames: int

    @property
    def is_silent(self) -> bool:
        """Whether it holds no sound, so that the model has nothing to go by."""
        return is_silent(self.log_mel, self.valid_frames)


def as_it_is(source: Any) -> Any:
    """The source itself: the default `open_source`."""
    return source


class WindowedModel(ABC):
    """A model with its front end, from recordings to the values of their windows."""

    def __init__(self, audio: AudioConfig) -> None:
        self.audio, self.log_mel = audio, LogMel(audio)

    @abstractmethod
    def of_clips(self, clips: Sequence[Clip]) -> Values:
        """Values (B, V) of windows, in one forward pass."""

    def windows(self, source: Source) -> list[Window]:
        """(start, end, values (V,)) of each window of a recording; times in seconds.

        A rest at the end that is shorter than
        `raymae.audio.windows.least_samples` is ignored.
        Raises AudioError for a recording that can't be read, of it SilentError for one without sound.
        """
        (found,) = self.each([source])
        if isinstance(found, AudioError):
            raise found
        return found

    def each(
        self, sources: Iterable[Named], open_source: Callable[[Named], Source] = as_it_is
    ) -> Iterator[list[Window] | AudioError]:
        """The windows of each of many recordings, in their order, or the error of one that can't be read.

        A forward pass takes `BATCH` windows, of several recordings where these are short. Of a file, one window is held
        at a time. `open_source` turns an entry of `sources` into a source of `windows`.
        """
        pending: deque[_Recording] = deque()
        batch: list[_Part] = []
        for source in sources:
            recording = _Recording()
            pending.append(recording)
            try:
                for part in self._parts(open_source(source), recording):
                    batch.append(part)
                    if len(batch) == BATCH:
                        self._forward(batch)
            except AudioError as error:
                recording.error = error
            while pending and not pending[0].waiting:
                yield pending.popleft().found
        self._forward(batch)
        yield from (recording.found for recording in pending)

    def _parts(self, source: Source, recording: _Recording) -> Iterator[_Part]:
        """The windows of a recording that the model has to see; counts them as waiting."""
        if isinstance(source, tuple):
            clips = self.clips(self.waveform(source))
        else:
            clips = (self._clip(*window) for window in read_windows(source, self.audio))
        for clip in clips:
            place = recording.begin()
            if clip.is_silent:
                recording.add(place, (clip.start, clip.end, None))
            else:
                yield _Part(recording, place, clip)

    def _forward(self, batch: list[_Part]) -> None:
        """Compute the values of a batch, append the results to their recordings and clear the batch."""
        if not batch:
            return
        for part, value in zip(batch, self.of_clips([part.clip for part in batch]), strict=True):
            part.recording.add(part.place, (part.clip.start, part.clip.end, value))
        batch.clear()

    def clips(self, waveform: FloatArray) -> Iterator[Clip]:
        """The windows of a waveform (n_samples,) at the front end's sample rate, one after the other."""
        audio = self.audio
        for start in window_starts(len(waveform), audio):
            yield self._clip(start, waveform[start : start + audio.n_samples])

    def _clip(self, start: int, waveform: FloatArray) -> Clip:
        """The window of the samples (n_samples,) from `start` on."""
        audio = self.audio
        fitted = fit_length(self.log_mel(waveform), audio.n_frames, audio.silence)
        return Clip(start / audio.sample_rate, (start + len(waveform)) / audio.sample_rate, *fitted)

    def waveform(self, source: Source, max_seconds: float | None = None) -> FloatArray:
        """The mono waveform (n_samples,) of a source at the front end's sample rate (`read_waveform`)."""
        return read_waveform(source, self.audio.sample_rate, max_seconds)

    @staticmethod
    def average(windows: list[Window]) -> NDArray[np.float64]:
        """Values (V,) of a recording: the average over its windows with sound, weighted by length.

        Raises SilentError if there are none.
        """
        sounding = [(end - start, value) for start, end, value in windows if value is not None]
        if not sounding:
            raise SilentError
        lengths, values = zip(*sounding, strict=True)
        return np.average(values, axis=0, weights=lengths)


@dataclass
class _Recording:
    """Results of a recording so far."""

    windows: list[Window | None] = field(default_factory=list)
    waiting: int = 0
    """Windows that have no values yet."""
    error: AudioError | None = None

    def begin(self) -> int:
        """Count another window; its place."""
        self.windows.append(None)
        self.waiting += 1
        return len(self.windows) - 1

    def add(self, place: int, window: Window) -> None:
        self.windows[place] = window
        self.waiting -= 1

    @property
    def found(self) -> list[Window] | AudioError:
        windows = [window for window in self.windows if window]
        silent = windows and all(value is None for _, _, value in windows)
        return self.error or (SilentError() if silent else windows)


@dataclass(frozen=True)
class _Part:
    """A window waiting for its values."""

    recording: _Recording
    place: int
    clip: Clip
