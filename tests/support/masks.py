"""Draws and masks of small batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raymae.features.draws import Draws
from raymae.models.mae import MaeOutput, MaskedAutoencoder
from raymae.models.masking import Drawn, Masking, arrange, masking_of


def make_draws(count: int, seed: int = 0, group: int = 1) -> Draws:
    """Draws of `count` clips at the beginning of a run."""
    return Draws(seed, np.arange(count), group)


def tensors(drawn: Drawn) -> dict[str, Tensor]:
    """What is drawn, as the device gets it."""
    return {name: torch.from_numpy(value) for name, value in drawn.items()}


def keeping(kept: Tensor, valid: Tensor | None = None) -> Masking:
    """The masking that keeps the patches `kept` (B, L) of those `valid` (B, L), by default of all."""
    valid = torch.ones_like(kept) if valid is None else valid
    return masking_of(tensors(arrange(kept.numpy(), valid.numpy(), int(kept.sum(1).max()))))


def run(
    model: MaskedAutoencoder, log_mel: Tensor, valid_frames: Tensor | None = None, seed: int = 0, **views: Tensor
) -> MaeOutput:
    """A forward pass of log-mels (B, T, F) under masks that a seed decides."""
    return model(log_mel, model.random_masking(log_mel, valid_frames, make_draws(len(log_mel), seed)), **views)
