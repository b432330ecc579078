"""What every task decides ahead of a step, on the CPU: the frames that are used, and which patches of them sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raymae.config import AudioConfig, AugmentConfig
from raymae.features.augment import Drawn, apply_geometry, draw_gain, draw_geometry, hidden_patches
from raymae.features.draws import Draws
from raymae.models.patches import Grid, grid_size, moving_patches, recorded, sounding_clips
from raymae.training.batches.passes import Clips

Empty = Callable[..., torch.Tensor]
"""Allocates host memory of a shape (`raymae.training.batches.transfer.Transfer.empty`)."""


@dataclass(frozen=True)
class Frames:
    """The frames of a batch after geometry."""

    log_mel: torch.Tensor
    """(B, T, F) float16, in host memory."""
    valid_frames: NDArray[np.int64]
    """(B,)."""
    gain: NDArray[np.float64] | None
    """(B, 1), for `draw_coloration`."""

    @property
    def values(self) -> NDArray[np.float16]:
        """The log-mels as an array that shares their memory."""
        return np.asarray(self.log_mel.numpy())


def take_frames(clips: Clips, config: AugmentConfig, audio: AudioConfig, draws: Draws, empty: Empty) -> Frames:
    """Crop and roll the clips into host memory, and draw their gain."""
    geometry = draw_geometry(clips.valid_frames, config, audio, draws)
    log_mel = empty(len(clips.rows), geometry.length, audio.n_mels)
    apply_geometry(clips.log_mel, geometry, log_mel.numpy())
    return Frames(log_mel, geometry.valid_frames, draw_gain(config, audio, draws))


@dataclass(frozen=True)
class Sound:
    """Which patches of a batch can be used, before coloration."""

    valid: NDArray[np.bool_]
    """(B, S, L): the valid patches of every segment of a clip."""
    sounding: NDArray[np.bool_]
    """(B,): the clips that aren't silent."""
    grid: Grid
    starts: list[int]
    patch_size: tuple[int, int]
    n_mels: int

    def without_hidden(self, drawn: Drawn, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """The valid patches of some clips, without those that SpecAugment hides from them."""
        valid = self.valid[rows]
        parts = [hidden_patches(drawn, self.patch_size, self.grid, self.n_mels, start) for start in self.starts]
        hidden = [part for part in parts if part is not None]
        return valid & ~np.stack(hidden, 1) if hidden else valid


def find_sound(
    frames: Frames,
    patch_size: tuple[int, int],
    silence: float,
    length: int | None = None,
    starts: list[int] | None = None,
) -> Sound:
    """Find the valid patches of clips, or of their segments of `length` frames that begin at `starts`."""
    values = frames.values
    length, starts = length or values.shape[1], starts or [0]
    length = min(length, values.shape[1])
    grid = grid_size(length, values.shape[2], patch_size)
    valid = [
        moving_patches(values[:, start : start + length], patch_size, silence)
        & recorded(*grid, patch_size[0], np.clip(frames.valid_frames - start, 0, length))
        for start in starts
    ]
    stacked = np.stack(valid, 1)
    sounding = sounding_clips(values, frames.valid_frames, stacked.reshape(len(values), -1))
    return Sound(stacked, sounding, grid, starts, patch_size, values.shape[2])


def prefixed(prefix: str, drawn: Drawn) -> Drawn:
    """The arrays under names that begin with `prefix`."""
    return {prefix + name: value for name, value in drawn.items()}


def part(prefix: str, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in drawn.items() if name.startswith(prefix)}
