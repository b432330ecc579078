"""Write and read classifier folders, and compute class probabilities of log-mels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig, from_dict, redact, to_dict
from raymae.features.augment import crop_frames
from raymae.models import build_classifier
from raymae.models.patches import has_sound
from raymae.models.weights_file import read_weights, save_weights
from raymae.storage.checksums import check_format
from raymae.storage.folder import Folder
from raymae.storage.found import what_is_there

FORMAT = 2
"""Format of `classifier.json`; raised when the names of its settings change."""

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """A model with its class names and the settings of its front end and fine-tuning."""

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
    """Write a classifier folder; `cnn` names the network if it is not the transformer encoder."""
    folder.write_bytes("model.safetensors", save_weights(model))
    settings = {"audio": audio.front_end(), "model": to_dict(model_config), "finetune": to_dict(finetune), "cnn": cnn}
    folder.write_json("classifier.json", {"format": FORMAT, "class_names": class_names, **settings})


def read_classifier(folder: Folder) -> Classifier:
    """Read a classifier folder; ValueError where it isn't one, is damaged or was written by a later version."""
    url = redact(folder.url)
    for name in ("classifier.json", "model.safetensors"):
        if not folder.exists(name):
            raise ValueError(f"{url} is not a classifier: it has no {name}{what_is_there(folder)}")
    card = folder.read_json("classifier.json")
    check_format(card.get("format") if isinstance(card, dict) else None, FORMAT, f"{url}/classifier.json")
    try:
        class_names = [str(name) for name in card["class_names"]]
        audio = from_dict(AudioConfig, card["audio"])
        finetune = from_dict(FinetuneConfig, card["finetune"])
        sizes = audio, from_dict(ModelConfig, card["model"]), finetune, len(class_names), card["cnn"]
        # on the meta device, sizes that the weights don't fit take no memory; CNNs can't be built there
        with torch.device("cpu" if card["cnn"] else "meta"):
            sized = build_classifier(*sizes)
    except Exception as error:  # a setting that is missing, unknown or of another type, or that no model can have
        raise ValueError(f"{url}/classifier.json is damaged: {type(error).__name__}: {one_line(error)}") from None
    try:
        weights = read_weights(folder.read_checked("model.safetensors"))
        sized.load_state_dict(weights, assign=True)
        model = build_classifier(*sizes)
        model.load_state_dict(weights)
    except Exception as error:  # safetensors and torch raise various exceptions that name what doesn't fit
        raise ValueError(f"{url}/model.safetensors doesn't fit classifier.json: {one_line(error)}") from None
    return Classifier(model.eval(), class_names, audio, finetune)


def one_line(error: Exception) -> str:
    """The message of an exception, shortened to one line."""
    return textwrap.shorten(str(error), 300, placeholder=" …")


CPU_CLIPS = 4
"""Clips of a forward pass on a CPU. The activations of more don't fit into its caches: with `small`, a clip takes 56 ms
of one core in passes of 4 and 85 ms in one of 64."""


def views(n_frames: int, crop: int, valid_frames: Tensor, count: int) -> Tensor:
    """First frames (count, B) of the crops to average, spread evenly over each clip's valid frames (B,)."""
    room = (valid_frames.clamp(max=n_frames) - crop).clamp(min=0)
    shares = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    return torch.round(torch.from_numpy(shares).to(room.device)[:, None] * room).long()


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

    With `finetune.labels` = single they sum to 1; with multi each is an independent probability. Silent crops don't
    count; a clip without any other has an answer that means nothing (see `raymae.audio.logmel.is_silent`).
    """
    x = torch.tensor(log_mel, device=torch_device)
    frames = torch.tensor(valid_frames, device=torch_device).long()
    size = CPU_CLIPS if torch_device.type == "cpu" else max(1, len(x))
    found = [
        mean_probabilities(model, x[start : start + size], frames[start : start + size], finetune, audio)
        for start in range(0, max(1, len(x)), size)
    ]
    return np.asarray(torch.cat(found).cpu().numpy(), np.float32)


def mean_probabilities(
    model: Callable[[Tensor, Tensor], Tensor],
    log_mel: Tensor,
    valid_frames: Tensor,
    finetune: FinetuneConfig,
    audio: AudioConfig,
) -> Tensor:
    """`class_probabilities` (B, C) of log-mels (B, T, F) and valid frames (B,) by a model of logits.

    No shape depends on the data, so that a graph can be exported.
    """
    squash = torch.sigmoid if finetune.labels == "multi" else partial(torch.softmax, dim=1)
    total: Any = 0.0
    counted: Any = 0.0
    for x, frames in crops_of(log_mel, valid_frames, crop_frames(finetune.augment, audio), finetune.views):
        # the smallest weight that float32 adds to 1 without a trace, for clips of which all crops are silent
        weight = has_sound(x, frames).float().clamp(min=2.0**-60)[:, None]
        total, counted = total + weight * squash(model(x, frames).float()), counted + weight
    return total / counted  # type: ignore[no-any-return]


def crops_of(log_mel: Tensor, valid_frames: Tensor, crop: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` crops (B, crop, F), float32, of log-mels (B, T, F) and their valid frames (B,); of shorter ones all."""
    n_frames = log_mel.shape[1]
    if crop >= n_frames:
        yield log_mel.float(), valid_frames.clamp(0, n_frames)
        return
    clips = torch.arange(log_mel.shape[0], device=log_mel.device)[:, None]
    for start in views(n_frames, crop, valid_frames, count):
        places = start[:, None] + torch.arange(crop, device=log_mel.device)
        yield log_mel[clips, places].float(), (valid_frames - start).clamp(0, crop)


def check_teacher(teacher: Folder, class_names: Sequence[str]) -> None:
    """Raise ValueError for a teacher (a classifier's folder) of other classes than those of the table's labels."""
    known = [str(name) for name in teacher.read_json("classifier.json")["class_names"]]
    if known != list(class_names):
        missing = [name for name in class_names if name not in known]
        extra = [name for name in known if name not in class_names]
        problems = [f"it doesn't know {', '.join(missing)}"] if missing else []
        problems += [f"no clip is labelled {', '.join(extra)}"] if extra else []
        raise ValueError(
            f"the teacher {redact(teacher.url)} is a classifier of {', '.join(known)}; the labelled training clips are "
            f"of {', '.join(class_names)}: {'; '.join(problems) or 'their order differs'}. Fine-tune one on this table"
        )
