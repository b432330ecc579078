"""Log-mels as patches: cutting, putting together, which ones hold sound, and where they lie.

Patches are numbered in (time, frequency) order: patch l lies in time column l // F and frequency row l % F of a grid of
(T, F) patches. A log-mel is padded with silence up to whole patches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

Grid = tuple[int, int]

CONSTANT = 1e-3
"""A patch in which no band moves by more (in units of the normalised log-mel, about a float16 step) is constant."""


class Patches(NamedTuple):
    """The patches of a batch of clips."""

    values: Tensor
    """(B, L, p): the pixels of each patch, frame after frame."""
    grid: Grid
    """Time columns and frequency rows; L is their product."""
    valid: Tensor
    """(B, L) bool, on the CPU: the patches that take part in encoder and loss."""
    segments: int = 1
    """How many of the B, one after the other, are segments of one clip."""


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
    """(B, L, p) -> (B, T, F): the inverse of `patchify`, with the padding to whole patches still there."""
    (columns, rows), (frames, bands) = grid, patch_size
    log_mel = patches.view(-1, columns, rows, frames, bands).transpose(2, 3)
    return log_mel.reshape(-1, columns * frames, rows * bands)


def valid_patches(patches: Tensor, patch_size: tuple[int, int], n_rows: int, valid_frames: Tensor) -> Tensor:
    """(B, L, p) -> (B, L) bool: the patches that hold sound.

    A patch is valid if all its frames are recorded and if it is not constant. A clip shorter than one patch keeps its
    first column. "Constant" means that no band changes over time, so that neither colouring nor centring, which add an
    offset to each band, turns digital silence into sound.

    Args:
        valid_frames: (B,) frames of each clip before its padding.
    """
    pixels = patches.unflatten(2, patch_size)
    moving = (pixels.amax(2) - pixels.amin(2)).amax(2) > CONSTANT
    recorded_columns = (valid_frames // patch_size[0]).clamp(min=1)
    column = torch.arange(patches.shape[1], device=patches.device) // n_rows
    return moving & (column < recorded_columns[:, None])


class Positions(nn.Module):
    """Fixed 2-D sin-cos positions, computed once for each grid and never part of the state_dict.

    A patch's position depends on its place alone, not on the size of the grid.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tables: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """(L, dim) for a grid of L patches."""
        if (grid, device) not in self.tables:
            with torch.inference_mode(False):  # a table first needed in prediction may later serve training
                self.tables[grid, device] = build_sincos2d_pos_embed(list(grid), dim=self.dim, device=device)
        return self.tables[grid, device]


def resample_positions(table: Tensor, grid: Grid) -> Tensor:
    """A table of positions (columns, rows, D) -> (L, D) for a grid of L patches; the table itself on its own grid.

    Another grid is interpolated, as timm does it: its ends get the positions of the table's ends.
    """
    own = table.shape[0], table.shape[1]
    flat = table.flatten(0, 1)
    if own == grid:
        return flat
    return resample_abs_pos_embed(flat[None], list(grid), list(own), num_prefix_tokens=0)[0]
