"""Predict with a finished classifier, as pseudo-labelling, evaluation, the registry and users do.

A classifier is a folder with `model.safetensors` and `classifier.json` (class names and all settings needed to build
the model and its front end). Nothing in it is unpickled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from raymae.audio.decode import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, FloatArray, load
from raymae.audio.errors import AudioError, SilentError
from raymae.audio.logmel import LogMel, fit_length, is_silent
from raymae.audio.windows import read_windows, window_starts
from raymae.datasets.labels import SEPARATOR, probability_columns
from raymae.inference.classifier import Probabilities, class_probabilities, read_classifier
from raymae.storage.folder import Folder

BATCH = 16
"""Windows of a forward pass."""

PRESENT = 0.5
"""Smallest probability of a class in a multi-label prediction."""

FULL_SCALE = {"float16": 1, "float32": 1, "float64": 1, "int16": 2**15, "int32": 2**31}
"""Full scale of a waveform by type."""

Source = str | Path | bytes | BinaryIO | tuple[NDArray[np.generic], int]

Named = TypeVar("Named")

Window = tuple[float, float, Probabilities | None]
"""Start and end in seconds, and class probabilities (C,) of a window of a recording; None for a silent one."""


@dataclass(frozen=True)
class Clip:
    """A window of a recording, of the classifier's clip length or shorter."""

    start: float
    """Seconds."""
    end: float
    log_mel: FloatArray
    """(n_frames, F), padded at its end."""
    valid_frames: int

    @property
    def is_silent(self) -> bool:
        """Whether it holds no sound, so that it isn't classified."""
        return is_silent(self.log_mel, self.valid_frames)


def as_it_is(source: Any) -> Any:
    """The source itself: the default `open_source`."""
    return source


class Predictor:
    """A classifier with its front end, from recordings to class probabilities."""

    def __init__(self, folder: Folder | str, torch_device: str = "cpu", threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.classifier = read_classifier(Folder(folder) if isinstance(folder, str) else folder)
        self.torch_device = torch.device(torch_device)
        self.classifier.model.to(self.torch_device)
        self.log_mel = LogMel(self.classifier.audio)

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the probabilities."""
        return self.classifier.class_names

    def probabilities(self, log_mel: NDArray[np.floating], valid_frames: NDArray[np.integer]) -> Probabilities:
        """Class probabilities (B, C) of log-mels (B, T, F)."""
        one = self.classifier
        return class_probabilities(one.model, log_mel, valid_frames, one.finetune, one.audio, self.torch_device)

    def windows(self, source: Source) -> list[Window]:
        """(start, end, probabilities (C,)) of each window of a recording; times in seconds.

        `source` is a path, an encoded file's bytes, an open file, or (waveform (n_samples,), sample_rate); a waveform
        of 16 or 32 bit integers is divided by its full scale. A rest at the end that is shorter than
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
        """The windows of a recording that have to be classified; counts them as waiting."""
        if isinstance(source, tuple):
            clips = self.clips(self.waveform(source))
        else:
            clips = (self._clip(*window) for window in read_windows(source, self.classifier.audio))
        for clip in clips:
            place = recording.begin()
            if clip.is_silent:
                recording.add(place, (clip.start, clip.end, None))
            else:
                yield _Part(recording, place, clip)

    def _forward(self, batch: list[_Part]) -> None:
        """Classify a batch, append the results to their recordings and clear the batch."""
        if not batch:
            return
        for part, value in zip(batch, self.of_clips([part.clip for part in batch]), strict=True):
            part.recording.add(part.place, (part.clip.start, part.clip.end, value))
        batch.clear()

    def clips(self, waveform: FloatArray) -> Iterator[Clip]:
        """The windows of a waveform (n_samples,) at the classifier's sample rate, one after the other."""
        audio = self.classifier.audio
        for start in window_starts(len(waveform), audio):
            yield self._clip(start, waveform[start : start + audio.n_samples])

    def _clip(self, start: int, waveform: FloatArray) -> Clip:
        """The window of the samples (n_samples,) from `start` on."""
        audio = self.classifier.audio
        fitted = fit_length(self.log_mel(waveform), audio.n_frames, audio.silence)
        return Clip(start / audio.sample_rate, (start + len(waveform)) / audio.sample_rate, *fitted)

    def of_clips(self, clips: Sequence[Clip]) -> Probabilities:
        """Class probabilities (B, C) of windows, in one forward pass."""
        frames = np.array([clip.valid_frames for clip in clips], np.int32)
        return self.probabilities(np.stack([clip.log_mel for clip in clips]), frames)

    def waveform(self, source: Source, max_seconds: float | None = None) -> FloatArray:
        """The mono waveform (n_samples,) of a source (see `windows`) at the classifier's sample rate.

        Raises AudioError for a source that can't be read, of it TooLongError for a file longer than `max_seconds`.
        """
        if not isinstance(source, tuple):
            return load(source, self.classifier.audio.sample_rate, max_seconds=max_seconds)
        given, sample_rate = np.asarray(source[0]), source[1]
        if given.dtype.name not in FULL_SCALE:
            raise AudioError(f"a waveform of {given.dtype.name}; valid: {', '.join(FULL_SCALE)}")
        waveform = given.astype(np.float32) / np.float32(FULL_SCALE[given.dtype.name])
        if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
            raise AudioError("a waveform has to be one-dimensional, finite and not empty")
        if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
            raise AudioError(f"{sample_rate} Hz is not a valid sample rate")
        if sample_rate != self.classifier.audio.sample_rate:
            waveform = soxr.resample(waveform, sample_rate, self.classifier.audio.sample_rate, quality="HQ")
        if not len(waveform):
            raise AudioError(f"too short: no sample at {self.classifier.audio.sample_rate} Hz")
        return waveform

    def __call__(self, source: Source) -> dict[str, float]:
        """Class probabilities of a recording of any length: the average over its windows, weighted by length."""
        mean = self.average(self.windows(source))
        return {name: float(value) for name, value in zip(self.class_names, mean, strict=True)}

    @staticmethod
    def average(windows: list[Window]) -> NDArray[np.float64]:
        """Class probabilities (C,) of a recording: the average over its windows with sound, weighted by length.

        Raises SilentError if there are none.
        """
        sounding = [(end - start, value) for start, end, value in windows if value is not None]
        if not sounding:
            raise SilentError
        lengths, values = zip(*sounding, strict=True)
        return np.average(values, axis=0, weights=lengths)

    def label(self, probabilities: NDArray[np.floating]) -> tuple[str, float]:
        """The predicted label for probabilities (C,), and the largest of them.

        Multi-label: the classes with at least `PRESENT`, most probable first, joined by `SEPARATOR`; the most probable
        class if there are none.
        """
        ranked = np.argsort(-probabilities, kind="stable")
        multi_label = self.classifier.finetune.labels == "multi"
        present = [place for place in ranked if probabilities[place] >= PRESENT] if multi_label else []
        label = SEPARATOR.join(self.class_names[place] for place in present or ranked[:1])
        return label, float(probabilities[ranked[0]])

    def row(self, path: str, open_source: Callable[[str], Source] = as_it_is) -> dict[str, Any]:
        """A row of a result table: path, scene_label, confidence (both from `label`), error, and for every class its
        probability in `p_<class>`. For a file that can't be read, only path and error are set."""
        (found,) = self.rows([path], open_source)
        return {"path": path, **found}

    def rows(
        self, sources: Iterable[Named], open_source: Callable[[Named], Source] = as_it_is
    ) -> Iterator[dict[str, Any]]:
        """The rows of many recordings, as in `row` without path, in their order."""
        columns = probability_columns(self.class_names)
        for windows in self.each(sources, open_source):
            if isinstance(windows, AudioError):
                missing = dict.fromkeys(columns)
                yield {"scene_label": None, "confidence": None, "error": str(windows), **missing}
                continue
            mean = self.average(windows)
            label, confidence = self.label(mean)
            values = dict(zip(columns, mean.tolist(), strict=True))
            yield {"scene_label": label, "confidence": confidence, "error": None, **values}


@dataclass
class _Recording:
    """Results of a recording so far."""

    windows: list[Window | None] = field(default_factory=list)
    waiting: int = 0
    """Windows that have not been classified yet."""
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
    """A window waiting to be classified."""

    recording: _Recording
    place: int
    clip: Clip
