"""Patches of log-mels: patchify and unpatchify, valid patches, and position embeddings.

Patches are numbered in (time, frequency) order: patch l is in time column l // F and frequency row l % F of a grid of
(T, F) patches. A log-mel is padded with silence to whole patches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import CONSTANT

Grid = tuple[int, int]


class Patches(NamedTuple):
    """The patches of a batch of clips."""

    values: Tensor
    """(B, L, p): the pixels of each patch, frame by frame."""
    grid: Grid
    """Time columns and frequency rows; L is their product."""
    segments: int = 1
    """Number of consecutive items of the batch that are segments of one clip."""


def grid_size(n_frames: int, n_mels: int, patch_size: tuple[int, int]) -> Grid:
    """Time columns and frequency rows of the patches that cover a log-mel of (n_frames, n_mels)."""
    return math.ceil(n_frames / patch_size[0]), math.ceil(n_mels / patch_size[1])


def patchify(log_mel: Tensor, patch_size: tuple[int, int], silence: float) -> Tensor:
    """(B, T, F) -> (B, L, p) float32 with p = patch frames x patch bands; padded with `silence` to whole patches."""
    batch, n_frames, n_mels = log_mel.shape
    columns, rows = grid_size(n_frames, n_mels, patch_size)
    frames, bands = patch_size
    padding = (0, rows * bands - n_mels, 0, columns * frames - n_frames)
    log_mel = functional.pad(log_mel.float(), padding, value=silence) if any(padding) else log_mel.float()
    patches = log_mel.view(batch, columns, frames, rows, bands).transpose(2, 3)
    return patches.reshape(batch, columns * rows, frames * bands)


def unpatchify(patches: Tensor, grid: Grid, patch_size: tuple[int, int]) -> Tensor:
    """(B, L, p) -> (B, T, F): the inverse of `patchify`; the padding to whole patches is kept."""
    (columns, rows), (frames, bands) = grid, patch_size
    log_mel = patches.view(-1, columns, rows, frames, bands).transpose(2, 3)
    return log_mel.reshape(-1, columns * frames, rows * bands)


def check_shape(log_mel: Tensor, n_mels: int) -> None:
    """ValueError unless the shape is (B, T, n_mels) with at least a frame; other bands would be padded or cut."""
    if log_mel.ndim != 3 or log_mel.shape[2] != n_mels or not log_mel.shape[1]:
        hint = ""
        if log_mel.ndim == 3 and log_mel.shape[1] == n_mels:
            hint = ": transpose its last two axes, time comes before frequency"
        elif log_mel.ndim == 2 and log_mel.shape[1] == n_mels:
            hint = ": add an axis for the batch, log_mel[None]"
        raise ValueError(f"a log-mel of shape {tuple(log_mel.shape)}; this model takes (B, T, {n_mels}){hint}")


def all_frames(log_mel: Tensor) -> Tensor:
    """(B, T, F) -> (B,): the valid frames of clips without padding."""
    return torch.full((len(log_mel),), log_mel.shape[1], device=log_mel.device)


def valid_patches(patches: Tensor, patch_size: tuple[int, int], n_rows: int, valid_frames: Tensor) -> Tensor:
    """(B, L, p) -> (B, L) bool: the patches that contain sound.

    A patch is valid if none of its frames is padding and it is not constant. A clip shorter than one patch keeps its
    first column. "Constant" means that no band changes over time, so that digital silence stays invalid after random EQ
    and band-mean subtraction, which add an offset to each band.

    Args:
        valid_frames: (B,) frames of each clip before its padding.
    """
    pixels = patches.unflatten(2, patch_size)
    moving = (pixels.amax(2) - pixels.amin(2)).amax(2) > CONSTANT
    recorded_columns = (valid_frames // patch_size[0]).clamp(min=1)
    column = torch.arange(patches.shape[1], device=patches.device) // n_rows
    return moving & (column < recorded_columns[:, None])


def has_sound(log_mel: Tensor, valid_frames: Tensor) -> Tensor:
    """(B, T, F) -> (B,) bool: the clips of which a band changes over the valid frames.

    Random crops of a recording with a dropout may hold none. Before random EQ and masks only: those change silence.
    """
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    inside = (frames < valid_frames.clamp(min=2)[:, None])[:, :, None]
    highest = log_mel.masked_fill(~inside, -torch.inf).amax(1)
    lowest = log_mel.masked_fill(~inside, torch.inf).amin(1)
    return (highest - lowest).amax(1) > CONSTANT


def moving_patches(log_mel: NDArray[np.float16], patch_size: tuple[int, int], silence: float) -> NDArray[np.bool_]:
    """(B, T, F) -> (B, L): the patches that are not constant, as `valid_patches` defines it, found on the CPU.

    Nearly every patch is settled by two of its values.
    """
    (frames, bands), (batch, n_frames, n_mels) = patch_size, log_mel.shape
    columns, rows = grid_size(n_frames, n_mels, patch_size)
    padding = (0, 0), (0, columns * frames - n_frames), (0, rows * bands - n_mels)
    if any(after for _, after in padding):
        log_mel = np.pad(log_mel, padding, constant_values=np.float16(silence))
    pixels = log_mel.reshape(batch, columns, frames, rows, bands)
    first, middle = (pixels[:, :, frame, :, bands // 2].astype(np.float32) for frame in (0, frames // 2))
    moving = np.asarray(np.abs(first - middle) > CONSTANT)
    left = np.nonzero(~moving)
    if len(left[0]):
        whole = pixels.transpose(0, 1, 3, 2, 4)[left].astype(np.float32)
        moving[left] = (whole.max(1) - whole.min(1)).max(1) > CONSTANT
    return moving.reshape(batch, columns * rows)


def recorded(columns: int, rows: int, frames: int, valid_frames: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(B, L): the patches of `frames` frames none of which is padding; a clip shorter than one keeps its first
    column."""
    whole = np.maximum(np.asarray(valid_frames) // frames, 1)
    return np.repeat(np.arange(columns) < whole[:, None], rows, axis=1)


def sounding_clips(
    log_mel: NDArray[np.float16], valid_frames: NDArray[np.integer], moving: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(B, T, F) -> (B,): `has_sound`, found on the CPU; `moving` (B, L) are patches without padding that move."""
    found = np.array(moving.any(1))
    for clip in np.flatnonzero(~found):
        values = log_mel[clip, : max(2, int(valid_frames[clip]))].astype(np.float32)
        found[clip] = bool((np.ptp(values, axis=0) > CONSTANT).any())
    return found


class Positions(nn.Module):
    """Fixed 2-D sin-cos position embeddings, computed once per grid and never part of the state_dict.

    A patch's embedding depends only on its column and row, not on the size of the grid.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tables: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """Embeddings (L, dim) for a grid of L patches."""
        if (grid, device) not in self.tables:
            with torch.inference_mode(False):  # a table first computed in prediction may later be used in training
                self.tables[grid, device] = build_sincos2d_pos_embed(list(grid), dim=self.dim, device=device)
        return self.tables[grid, device]


def fit_positions(table: Tensor, grid: Grid) -> Tensor:
    """Fit a table of positions (columns, rows, D) -> (L, D) to a grid of L patches.

    A shorter grid gets the first columns, as in Audio-MAE's code: so the distance of two patches in seconds stays what
    the weights were trained with. A longer one, and one of other rows, is interpolated as in timm: its ends get the
    positions of the ends of the table.
    """
    table = table[: grid[0]]
    table_grid = table.shape[0], table.shape[1]
    flat = table.flatten(0, 1)
    if table_grid == grid:
        return flat
    return resample_abs_pos_embed(flat[None], list(grid), list(table_grid), num_prefix_tokens=0)[0]
