"""The ONNX graphs of a model: from log-mels to logits or tokens, or from audio to class probabilities."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.audio.windows import least_samples
from raymae.config import AudioConfig, GraphInput
from raymae.features.device_log_mel import DeviceLogMel
from raymae.inference.classifier import mean_probabilities
from raymae.inference.predictor import Predictor
from raymae.models.masking import every, only
from raymae.models.patches import has_sound
from raymae.serving.exported_model import Model, difference, patches_of


class LogMelNetwork(nn.Module):
    """The model without data-dependent shapes: invalid patches are kept, and not attended to."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder, self.classifier = model.encoder, model.classifier

    def forward(self, log_mel: Tensor, valid_frames: Tensor) -> Tensor:
        """(B, T, F) and (B,) frames before padding -> logits (B, C), or tokens (B, 1 + L, D) of an encoder alone."""
        shifts = self.classifier.finetune.shifts if self.classifier else 1
        patches, frames = patches_of(self.encoder, self.classifier, log_mel, valid_frames, shifts)
        valid = self.encoder.valid(patches, frames)
        kept = every(valid, valid.shape[0], valid.shape[1], valid.device)
        return (
            self.classifier.head(self.classifier.embed(patches, kept))
            if self.classifier
            else self.encoder(patches, kept)
        )


class AudioNetwork(nn.Module):
    """From recordings to class probabilities as `Predictor` computes them: windows, log-mels, crops, their averages."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.classifier  # `graph_of` refuses others
        self.network, self.finetune = LogMelNetwork(model), model.classifier.finetune
        self.audio, self.log_mel = model.audio, DeviceLogMel(model.audio)

    def forward(self, audio: Tensor) -> Tensor:
        """Waveforms (B, n) at the front end's rate -> (B, C), the averages over their windows; NaN for silent ones."""
        windows, samples = cut_windows(audio, self.audio)
        log_mel, frames = self.log_mel.at_once(windows, samples), self.log_mel.frames(samples)
        found = mean_probabilities(self.network, log_mel, frames, self.finetune, self.audio)
        weight = (samples * has_sound(log_mel, frames)).to(found.dtype)
        batch = audio.shape[0]  # `len` would make it a number
        found, weight = found.reshape(batch, -1, found.shape[1]), weight.reshape(batch, -1, 1)
        return (found * weight).sum(1) / weight.sum(1)


def cut_windows(audio: Tensor, config: AudioConfig) -> tuple[Tensor, Tensor]:
    """Waveforms (B, n) -> their W windows (B W, samples of a clip), the last one padded, and the samples before the
    padding (B W,). As `raymae.audio.windows.window_starts`: a short rest at the end is left out."""
    batch, n_samples = audio.shape
    length = config.n_samples
    count = torch.sym_max(1, (n_samples - least_samples(config)) // length + 1)
    windows = nn.functional.pad(audio, (0, length))[:, : count * length].reshape(-1, length)
    samples = (n_samples - length * torch.arange(count, device=audio.device)).clamp(max=length)
    return windows, samples.expand(batch, -1).reshape(-1)


@dataclass(frozen=True)
class OnnxGraph(ABC):
    """A graph to be written, with the names of its inputs and of its output, and the comparison with the model."""

    model: Model
    inputs: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def file(self) -> str:
        """Name of the file."""

    @property
    @abstractmethod
    def output(self) -> str:
        """Name of the output."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Export the graph, with free axes."""

    @abstractmethod
    def check(self, path: Path) -> float:
        """The largest difference between the model as it is used and the graph in onnxruntime."""

    def card(self) -> dict[str, Any]:
        """Its part of export.json."""
        return {"file": self.file, "inputs": list(self.inputs), "output": self.output}

    def _write(
        self, path: Path, network: nn.Module, example: tuple[Tensor, ...], axes: dict[str, dict[int, str]]
    ) -> None:
        """Export a network with named free axes of its inputs; the file carries its card as metadata."""
        dims = {name: torch.export.Dim(name) for free in axes.values() for name in free.values()}
        shapes = {name: {axis: dims[dim] for axis, dim in free.items()} for name, free in axes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own: names of axes, deprecations
            program = torch.onnx.export(
                network.eval(),
                example,
                dynamo=True,
                verbose=False,
                input_names=list(self.inputs),
                output_names=[self.output],
                dynamic_shapes=shapes,
            )
        assert program is not None
        card = {**self.card(), "class_names": self.model.class_names}
        program.model.metadata_props["raymae"] = json.dumps(card)
        program.save(path)


def run(path: Path, **inputs: NDArray[Any]) -> Tensor:
    """The output of a graph in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, inputs)[0])


class LogMelGraph(OnnxGraph):
    """From log-mels and their valid frames to logits, or to tokens of an encoder alone; any number of clips."""

    inputs = ("log_mel", "valid_frames")

    @property
    def file(self) -> str:
        return "classifier.onnx" if self.model.classifier else "encoder.onnx"

    @property
    def output(self) -> str:
        return "logits" if self.model.classifier else "tokens"

    def write(self, path: Path) -> None:
        axes = {name: {0: "batch"} for name in self.inputs}
        self._write(path, LogMelNetwork(self.model), noise_clips(self.model, 2), axes)

    @torch.inference_mode()
    def check(self, path: Path) -> float:
        model = self.model
        log_mel, valid_frames = noise_clips(model, 5)
        found = run(path, log_mel=log_mel.numpy(), valid_frames=valid_frames.numpy())
        if model.classifier:
            return difference("ONNX", model.classifier(log_mel, valid_frames), found)
        patches = model.encoder.patchify(log_mel)
        masking = only(model.encoder.valid(patches, valid_frames))
        valid = masking.mask == 0
        expected = model.encoder(patches, masking.kept)
        kept = torch.ones_like(masking.kept.ids, dtype=torch.bool)
        if masking.kept.attend is not None:
            kept = masking.kept.attend
        return max(
            difference("ONNX", expected[:, 0], found[:, 0]),
            difference("ONNX", expected[:, 1:][kept], found[:, 1:][valid]),
        )


def noise_clips(model: Model, batch: int) -> tuple[Tensor, Tensor]:
    """Log-mels (B, T, F) of noise and their valid frames: later clips are shorter and padded, the first has a silent
    row."""
    log_mel = torch.randn(batch, model.n_frames, model.audio.n_mels, generator=torch.Generator().manual_seed(batch))
    valid_frames = torch.linspace(model.n_frames, max(1, model.n_frames // 4), batch).long()
    for clip, frames in zip(log_mel, valid_frames.tolist(), strict=True):
        clip[frames:] = model.audio.silence
    log_mel[0, :, : model.encoder.patch_size[1]] = model.audio.silence
    return log_mel, valid_frames


class AudioGraph(OnnxGraph):
    """From audio to class probabilities, with the front end inside; any number of recordings of any one length."""

    inputs = ("audio",)
    file, output = "audio_classifier.onnx", "probabilities"

    def card(self) -> dict[str, Any]:
        audio = self.model.audio
        windows = {"window_samples": audio.n_samples, "shortest_rest_samples": least_samples(audio)}
        return super().card() | {"sample_rate": audio.sample_rate} | windows

    def write(self, path: Path) -> None:
        example = torch.from_numpy(noise(self.model.audio, 2.4))[None].repeat(2, 1)
        self._write(path, AudioNetwork(self.model), (example,), {"audio": {0: "batch", 1: "samples"}})

    def check(self, path: Path) -> float:
        """On recordings of several lengths, from a fraction of a window to some windows."""
        predictor, audio = Predictor(self.model.folder), self.model.audio
        found = []
        for windows in (0.3, 1.0, 2.4):
            waveform = noise(audio, windows)
            expected = torch.tensor(list(predictor((waveform, audio.sample_rate)).values()))
            found.append(difference("ONNX", expected, run(path, audio=waveform[None])[0]))
        return max(found)


def noise(audio: AudioConfig, windows: float) -> NDArray[np.float32]:
    """A recording (n_samples,) of noise, so many windows long, with less and less treble, so that windows differ."""
    n_samples = round(windows * audio.n_samples)
    wave = np.random.default_rng(n_samples).normal(size=n_samples + 1)
    return np.asarray(0.1 * (wave[1:] + np.linspace(0, 1, n_samples) * wave[:-1]), np.float32)


def graph_of(model: Model, given: GraphInput) -> OnnxGraph:
    """The graph of an input; ValueError for audio and an encoder alone, which gives no probabilities."""
    if given == "log_mel":
        return LogMelGraph(model)
    if model.classifier is None:
        raise ValueError(
            "--export.input audio gives class probabilities, and --export.model is an encoder without a head: name a "
            "classifier, or leave out --export.input"
        )
    return AudioGraph(model)
