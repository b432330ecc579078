"""A finished model to be exported, and the comparison of what was exported with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymae.config import AudioConfig, redact
from raymae.features.augment import crop_frames, segment_frames
from raymae.inference.classifier import one_line, read_classifier
from raymae.inference.embedder import Embedder, read_embedder
from raymae.models import AudioClassifier, Encoder, grid_size
from raymae.models.patches import Grid, Patches
from raymae.storage.folder import Folder
from raymae.storage.found import what_is_there

TOLERANCE = 1e-4
"""Largest accepted difference: absolute for outputs of up to 1, relative to the largest output above."""


@dataclass(frozen=True)
class Model:
    """A model to export: a classifier, or the encoder of a pre-training."""

    folder: Folder
    encoder: Encoder
    classifier: AudioClassifier | None
    audio: AudioConfig
    n_frames: int
    """Frames of its input, as in training."""
    segment: int
    """Frames of the input that the encoder encodes at once."""
    class_names: list[str] | None

    @property
    def grid(self) -> Grid:
        """Columns and rows of the patches of a segment."""
        return grid_size(self.segment, self.audio.n_mels, self.encoder.patch_size)

    @property
    def has_timm_head(self) -> bool:
        """Whether timm's VisionTransformer can hold the head: not with row statistics, nor with with_raw."""
        if self.classifier is None:
            return False
        return self.pool != "row_stats" and not self.classifier.finetune.with_raw

    @property
    def pool(self) -> str | None:
        """`finetune.pool`; None for an encoder alone."""
        return self.classifier.finetune.pool if self.classifier else None


def read_model(folder: Folder) -> Model:
    """Read a classifier folder or a pre-training folder, and fix the positions to the grid of the input.

    Raises:
        ValueError: the folder is neither, is damaged, or holds a CNN.
    """
    if folder.exists("classifier.json"):
        found = read_classifier(folder)
        if not isinstance(found.model, AudioClassifier):
            raise ValueError(
                f"{redact(folder.url)} is a CNN of timm: build it with timm.create_model and load its weights"
            )
        n_frames, segment = (
            crop_frames(found.finetune.augment, found.audio),
            segment_frames(found.finetune, found.audio),
        )
        model = Model(folder, found.model.encoder, found.model, found.audio, n_frames, segment, found.class_names)
    elif folder.exists("model.json"):
        embedder = read_encoder(folder)
        model = Model(folder, embedder.encoder, None, embedder.audio, embedder.segment, embedder.segment, None)
    else:
        raise ValueError(
            f"--export.model {redact(folder.url)} holds neither classifier.json nor model.json{what_is_there(folder)}"
        )
    table = model.encoder.position_table(model.grid, torch.device("cpu"))
    model.encoder.pos_embed = table.unflatten(0, model.grid).clone()
    return model


def read_encoder(folder: Folder) -> Embedder:
    """The encoder of a pre-training folder with its front end and window; ValueError where the folder is damaged."""
    try:
        return read_embedder(folder)
    except Exception as error:  # a missing or wrong setting or tensor raises exceptions of many kinds
        raise ValueError(f"{redact(folder.url)} is damaged: {type(error).__name__}: {one_line(error)}") from None


def patches_of(
    encoder: Encoder, classifier: AudioClassifier | None, log_mel: Tensor, valid_frames: Tensor, shifts: int = 1
) -> tuple[Patches, Tensor]:
    """Patches of log-mels (B, T, F), a row for each segment of a clip in a classifier, and the rows' valid frames."""
    if classifier:
        return classifier.patchify(log_mel, valid_frames, shifts=shifts)
    return encoder.patchify(log_mel), valid_frames


def difference(name: str, expected: Tensor, found: Tensor) -> float:
    """The largest difference between two outputs; ValueError where it is more than rounding."""
    largest = float((expected - found).abs().max())
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not largest <= limit:
        raise ValueError(
            f"the model in {name} differs by {largest:.2g} from raymae's, more than {limit:.2g}: nothing written"
        )
    return largest
