"""What every task decides ahead of a step, on the CPU: the frames that are used, and which patches of them sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raymae.config import AudioConfig, AugmentConfig
from raymae.features.augment import Drawn, apply_geometry, draw_gain, draw_geometry, hidden_patches
from raymae.features.draws import Draws
from raymae.models.patches import Grid, grid_size, moving_patches, recorded, sounding_clips
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import Transfer

Empty = Callable[..., torch.Tensor]
"""Allocates host memory of a shape (`raymae.training.batches.transfer.Transfer.empty`)."""


@dataclass(frozen=True)
class Frames:
    """The frames of a batch after geometry."""

    log_mel: torch.Tensor
    """(B, T, F) float16, in host memory unless a subclass says otherwise."""
    valid_frames: NDArray[np.int64]
    """(B,)."""
    gain: NDArray[np.float64] | None
    """(B, 1), for `draw_coloration`."""
    mix: Drawn = field(default_factory=dict)
    """Weights and partners (b,) of the first clips, whose waveforms were mixed; empty for none."""

    @property
    def values(self) -> NDArray[np.float16]:
        """The log-mels as an array that shares their memory."""
        return np.asarray(self.log_mel.numpy())

    def mixed_targets(self, target: NDArray[np.float32]) -> NDArray[np.float32]:
        """Targets (b, C) of the first clips, mixed as their waveforms are."""
        if not self.mix:
            return target
        weight, others = self.mix["wave_weight"][:, None], target[self.mix["wave_partner"]]
        return others + weight * (target - others)

    def find_patches(
        self, grid: Grid, patch_size: tuple[int, int], silence: float, length: int, starts: Sequence[int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The valid patches (B, S, L) of segments of `length` frames, and the clips that aren't silent (B,)."""
        values = self.values
        valid = [
            moving_patches(values[:, start : start + length], patch_size, silence)
            & recorded(*grid, patch_size[0], np.clip(self.valid_frames - start, 0, length))
            for start in starts
        ]
        stacked = np.stack(valid, 1)
        return stacked, sounding_clips(values, self.valid_frames, stacked.reshape(len(values), -1))


def take_frames(clips: Clips, config: AugmentConfig, audio: AudioConfig, draws: Draws, empty: Empty) -> Frames:
    """Crop and roll the clips into host memory, and draw their gain."""
    geometry = draw_geometry(clips.valid, config, audio, draws)
    log_mel = empty(len(clips.rows), geometry.length, audio.n_mels)
    apply_geometry(clips.values, geometry, log_mel.numpy())
    return Frames(log_mel, geometry.valid_frames, draw_gain(config, audio, draws))


class Inputs(Protocol):
    """Takes the frames of what is read of some clips."""

    def take(self, clips: Clips, draws: Draws, mixing: Draws, transfer: Transfer) -> Frames:
        """The frames that are used; `mixing` are the draws of the first clips, which may be mixed with one another."""
        ...


@dataclass(frozen=True)
class LogMelInputs:
    """Takes the frames of log-mels, on the CPU."""

    audio: AudioConfig
    config: AugmentConfig

    def take(self, clips: Clips, draws: Draws, mixing: Draws, transfer: Transfer) -> Frames:
        """Crop and roll the clips, and draw their gain."""
        return take_frames(clips, self.config, self.audio, draws, transfer.empty)


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
    _, n_frames, n_mels = frames.log_mel.shape
    length, starts = min(length or n_frames, n_frames), starts or [0]
    grid = grid_size(length, n_mels, patch_size)
    valid, sounding = frames.find_patches(grid, patch_size, silence, length, starts)
    return Sound(valid, sounding, grid, starts, patch_size, n_mels)


def prefixed(prefix: str, drawn: Drawn) -> Drawn:
    """The arrays under names that begin with `prefix`."""
    return {prefix + name: value for name, value in drawn.items()}


def part(prefix: str, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in drawn.items() if name.startswith(prefix)}
