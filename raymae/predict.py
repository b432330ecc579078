"""A finished classifier: written by fine-tuning, read by pseudo-labels, evaluation, the registry and the user.

A classifier is a folder with `model.safetensors` and `classifier.json` (class names and every setting that is needed
to build the model and its front end). Nothing in it is unpickled.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import nn

from raymae.audio.decode import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, AudioError, FloatArray, load
from raymae.audio.logmel import LogMel, fit_length
from raymae.config import AudioConfig, FinetuneConfig, ModelConfig, from_dict, redact, to_dict
from raymae.datasets.labels import SEPARATOR
from raymae.features.augment import crop_frames
from raymae.models import build_classifier
from raymae.models.weights_file import read_weights, save_weights
from raymae.storage.folder import Folder

FORMAT = 1
BATCH = 16
"""Windows of a forward pass."""
PRESENT = 0.5
"""Smallest probability of a class that a row names, where clips may have several."""
FULL_SCALE = {"float16": 1, "float32": 1, "float64": 1, "int16": 2**15, "int32": 2**31}
"""What a waveform of each type is divided by."""

Probabilities = NDArray[np.float32]
Source = str | Path | bytes | BinaryIO | tuple[NDArray[np.generic], int]
Named = TypeVar("Named")
Window = tuple[float, float, Probabilities]
"""Start and end in seconds, and the probabilities (C,) of a clip length of a recording."""


@dataclass(frozen=True)
class Clip:
    """A part of a recording, as long as what the classifier was trained on or shorter."""

    start: float
    """Seconds."""
    end: float
    log_mel: FloatArray
    """(n_frames, F), padded at its end."""
    valid_frames: int


@dataclass(frozen=True)
class Classifier:
    """A model with what belongs to it."""

    model: nn.Module
    class_names: list[str]
    audio: AudioConfig
    finetune: FinetuneConfig


def write_classifier(
    folder: Folder,
    model: nn.Module,
    *,
    class_names: list[str],
    audio: AudioConfig,
    model_config: ModelConfig,
    finetune: FinetuneConfig,
    cnn: str | None = None,
) -> None:
    """Write a classifier folder; `cnn` names the network where it is not the encoder."""
    folder.write_bytes("model.safetensors", save_weights(model))
    settings = {"audio": to_dict(audio), "model": to_dict(model_config), "finetune": to_dict(finetune), "cnn": cnn}
    folder.write_json("classifier.json", {"format": FORMAT, "class_names": class_names, **settings})


def read_classifier(folder: Folder) -> Classifier:
    """Read a classifier folder; ValueError where it is none, is damaged or comes from a later version."""
    url = redact(folder.url)
    for name in ("classifier.json", "model.safetensors"):
        if not folder.exists(name):
            raise ValueError(f"{url} is no classifier: it has no {name}")
    card = folder.read_json("classifier.json")
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise ValueError(f"{url}/classifier.json: format {found} is unknown; this reads {FORMAT}")
    try:
        class_names = [str(name) for name in card["class_names"]]
        audio = from_dict(AudioConfig, card["audio"])
        finetune = from_dict(FinetuneConfig, card["finetune"])
        sizes = audio, from_dict(ModelConfig, card["model"]), finetune, len(class_names), card["cnn"]
        with torch.device("cpu" if card["cnn"] else "meta"):  # sizes without memory: what the weights fit has little
            sized = build_classifier(*sizes)
    except Exception as error:  # a setting that is missing, unknown, of another type, or that no model can be built of
        raise ValueError(f"{url}/classifier.json is damaged: {type(error).__name__}: {one_line(error)}") from None
    try:
        weights = read_weights(folder.read_bytes("model.safetensors"))
        sized.load_state_dict(weights, assign=True)
        model = build_classifier(*sizes)
        model.load_state_dict(weights)
    except Exception as error:  # safetensors and torch name what doesn't fit, each with an exception of its own
        raise ValueError(f"{url}/model.safetensors doesn't fit classifier.json: {one_line(error)}") from None
    return Classifier(model.eval(), class_names, audio, finetune)


def one_line(error: Exception) -> str:
    """The beginning of what an exception says."""
    return textwrap.shorten(str(error), 300, placeholder=" …")


def views(n_frames: int, crop: int, valid_frames: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """First frames (count, B) of the crops that are averaged: spread evenly over each clip's valid frames."""
    room = np.maximum(np.minimum(valid_frames, n_frames) - crop, 0)
    shares = np.linspace(0, 1, count)[:, None] if count > 1 else np.array([[0.5]])
    return np.round(shares * room).astype(np.int64)


@torch.inference_mode()
def class_probabilities(
    model: nn.Module,
    log_mel: NDArray[np.floating],
    valid_frames: NDArray[np.integer],
    finetune: FinetuneConfig,
    audio: AudioConfig,
    torch_device: torch.device,
) -> Probabilities:
    """Class probabilities (B, C) of log-mels (B, T, F), averaged over `finetune.views` crops of the training length.

    With `finetune.labels` = single they sum to 1, with multi each is between 0 and 1 by itself.
    """
    squash = torch.sigmoid if finetune.labels == "multi" else partial(torch.softmax, dim=1)
    crop = crop_frames(finetune.augment, audio)
    if crop >= log_mel.shape[1]:
        starts = np.zeros((1, len(log_mel)), np.int64)
    else:
        starts = views(log_mel.shape[1], crop, np.asarray(valid_frames, np.int32), finetune.views)
    total: Any = 0.0
    for start in starts:
        part = np.stack([one[first : first + crop] for one, first in zip(log_mel, start, strict=True)])
        x = torch.from_numpy(part).to(torch_device).float()
        frames = torch.from_numpy(np.clip(valid_frames - start, 0, part.shape[1])).to(torch_device).long()
        total = total + squash(model(x, frames).float())
    return np.asarray((total / len(starts)).cpu().numpy(), np.float32)


def as_it_is(source: Any) -> Any:
    """For sources that need no opening."""
    return source


class Predictor:
    """A classifier with its front end: recordings in, scene probabilities out."""

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
        """(start, end, probabilities (C,)) of each clip length of a recording; times in seconds.

        `source` is a path, an encoded file's bytes, an open file, or (waveform (n_samples,), sample_rate); a waveform
        of 16 or 32 bit integers is divided by their full scale. A rest at the end that is shorter than an FFT is not
        looked at. Raises AudioError for a recording that can't be read.
        """
        (found,) = self.each([source])
        if isinstance(found, AudioError):
            raise found
        return found

    def each(
        self, sources: Iterable[Named], open_source: Callable[[Named], Source] = as_it_is
    ) -> Iterator[list[Window] | AudioError]:
        """The windows of each of many recordings in their order, or why it can't be read.

        Forward passes take `BATCH` windows, of several recordings where these are short; a long one is never held as a
        whole in more than its waveform. `open_source` makes what `windows` takes of an entry.
        """
        under_way: deque[_Recording] = deque()
        batch: list[_Part] = []
        for source in sources:
            recording = _Recording()
            under_way.append(recording)
            try:
                for part in self._parts(open_source(source), recording):
                    batch.append(part)
                    if len(batch) == BATCH:
                        self._forward(batch)
            except AudioError as error:
                recording.error = error
            while under_way and not under_way[0].waiting:
                yield under_way.popleft().found
        self._forward(batch)
        yield from (recording.found for recording in under_way)

    def _parts(self, source: Source, recording: _Recording) -> Iterator[_Part]:
        """The clips of a recording."""
        waveform = self.waveform(source)
        recording.waiting = len(self._starts(waveform))
        for clip in self.clips(waveform):
            yield _Part(recording, clip)

    def _forward(self, batch: list[_Part]) -> None:
        """Give the windows of a batch, which is empty then, to their recordings."""
        if not batch:
            return
        for part, value in zip(batch, self.of_clips([part.clip for part in batch]), strict=True):
            part.recording.windows.append((part.clip.start, part.clip.end, value))
            part.recording.waiting -= 1
        batch.clear()

    def _starts(self, waveform: FloatArray) -> range:
        audio = self.classifier.audio
        return range(0, max(1, len(waveform) - audio.n_fft + 1), audio.n_samples)

    def clips(self, waveform: FloatArray) -> Iterator[Clip]:
        """The clips of a waveform (n_samples,) at the classifier's sample rate, one after the other."""
        audio = self.classifier.audio
        for start in self._starts(waveform):
            part = waveform[start : start + audio.n_samples]
            fitted = fit_length(self.log_mel(part), audio.n_frames, audio.silence)
            yield Clip(start / audio.sample_rate, (start + len(part)) / audio.sample_rate, *fitted)

    def of_clips(self, clips: Sequence[Clip]) -> Probabilities:
        """Class probabilities (B, C) of clips, in one forward pass."""
        frames = np.array([clip.valid_frames for clip in clips], np.int32)
        return self.probabilities(np.stack([clip.log_mel for clip in clips]), frames)

    def waveform(self, source: Source, max_seconds: float | None = None) -> FloatArray:
        """The mono waveform (n_samples,) of a recording, see `windows`, at the classifier's sample rate.

        Raises TooLongError for a file longer than `max_seconds`.
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
            raise AudioError(f"{sample_rate} Hz is not a recording's sample rate")
        if sample_rate != self.classifier.audio.sample_rate:
            waveform = soxr.resample(waveform, sample_rate, self.classifier.audio.sample_rate, quality="HQ")
        if not len(waveform):
            raise AudioError(f"too short: no sample at {self.classifier.audio.sample_rate} Hz")
        return waveform

    def __call__(self, source: Source) -> dict[str, float]:
        """Scene probabilities of a recording of any length: the average over its windows, by their length."""
        mean = self.average(self.windows(source))
        return {name: float(value) for name, value in zip(self.class_names, mean, strict=True)}

    @staticmethod
    def average(windows: list[Window]) -> NDArray[np.float64]:
        """The probabilities (C,) of a recording: the average over its windows, by their length."""
        lengths = np.array([end - start for start, end, _ in windows])
        return np.average([value for _, _, value in windows], axis=0, weights=lengths)

    def label(self, probabilities: NDArray[np.floating]) -> tuple[str, float]:
        """What a row of probabilities (C,) is called, and the largest of them.

        Where clips may have several classes, those of `PRESENT` and above, surest first, joined; or the surest one
        where there are none.
        """
        ranked = np.argsort(-probabilities, kind="stable")
        several = self.classifier.finetune.labels == "multi"
        present = [place for place in ranked if probabilities[place] >= PRESENT] if several else []
        label = SEPARATOR.join(self.class_names[place] for place in present or ranked[:1])
        return label, float(probabilities[ranked[0]])

    def row(self, path: str, open_source: Callable[[str], Source] = as_it_is) -> dict[str, Any]:
        """A row of a result table: path, scene_label, confidence (both as of `label`), error, and a probability per
        class. A file that can't be read has no label and says why in `error`."""
        (found,) = self.rows([path], open_source)
        return {"path": path, **found}

    def rows(
        self, sources: Iterable[Named], open_source: Callable[[Named], Source] = as_it_is
    ) -> Iterator[dict[str, Any]]:
        """The rows of many recordings, as of `row` without path, in their order."""
        for windows in self.each(sources, open_source):
            if isinstance(windows, AudioError):
                nothing = dict.fromkeys(self.class_names)
                yield {"scene_label": None, "confidence": None, "error": str(windows), **nothing}
                continue
            mean = self.average(windows)
            label, confidence = self.label(mean)
            values = dict(zip(self.class_names, mean.tolist(), strict=True))
            yield {"scene_label": label, "confidence": confidence, "error": None, **values}


@dataclass
class _Recording:
    """What is known of a recording so far."""

    windows: list[Window] = field(default_factory=list)
    waiting: int = 0
    """Windows that have not been through the network."""
    error: AudioError | None = None

    @property
    def found(self) -> list[Window] | AudioError:
        return self.error or self.windows


@dataclass(frozen=True)
class _Part:
    """A window on its way to the network."""

    recording: _Recording
    clip: Clip
