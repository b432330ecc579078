"""Masking: which patches the encoder processes.

Masks are drawn on the CPU from a given generator and then moved, so that they are the same on every device. Ratios are
the share REMOVED; a mask is 0 where a patch is kept and 1 where it is removed. Counts are those of Audio-MAE: `int` of
the kept share, per clip and of its valid patches (columns, rows) only, at least one. The counts decide shapes, so all
of this is excluded from torch.compile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raymae.config import ModelConfig
from raymae.models.patches import Grid


class Masking(NamedTuple):
    """The mask of a batch and its index tensors."""

    mask: Tensor
    """(B, L) float: 0 is keep, 1 is remove (also for patches that are not valid)."""
    ids_keep: Tensor
    """(B, K) int64: the kept patches of each clip in ascending order, K being the largest number in the batch; clips
    with fewer are filled up with removed ones."""
    ids_restore: Tensor
    """(B, L) int64: position of each patch when the kept ones come first; those below K are in ids_keep."""
    attend: Tensor | None
    """(B, K) bool: which of ids_keep are kept; None if all are."""


def kept_count(n: int, ratio: float) -> int:
    """Number of patches (columns, rows) of n that are kept when the share `ratio` is removed."""
    return max(1, int(n * (1 - ratio)))


def kept_tokens(grid: Grid, model: ModelConfig) -> int:
    """Number of patches of a whole clip in the encoder's input in pre-training (without the class token)."""
    columns, rows = grid
    match model.mask_strategy:
        case "unstructured":
            return kept_count(columns * rows, model.mask_ratio)
        case "time":
            return kept_count(columns, model.mask_ratio) * rows
        case "frequency":
            return columns * kept_count(rows, model.mask_ratio)
        case "time_frequency":
            return kept_count(columns, model.time_mask_ratio) * kept_count(rows, model.freq_mask_ratio)


@torch.compiler.disable
def draw_kept(valid: Tensor, grid: Grid, model: ModelConfig, generator: torch.Generator | None) -> Tensor:
    """Draw a mask by the model's strategy: (B, L) valid -> (B, L) kept, both bool."""
    match model.mask_strategy:
        case "unstructured":
            return choose(valid, model.mask_ratio, generator)
        case "time":
            return choose_structured(valid, grid, model.mask_ratio, 0, generator)
        case "frequency":
            return choose_structured(valid, grid, 0, model.mask_ratio, generator)
        case "time_frequency":
            return choose_structured(valid, grid, model.time_mask_ratio, model.freq_mask_ratio, generator)


def choose(eligible: Tensor, ratio: float, generator: torch.Generator | None) -> Tensor:
    """(B, N) -> (B, N) bool: keep a random choice of each clip's eligible items; the share `ratio` is removed."""
    if ratio == 0:
        return eligible
    noise = torch.rand(eligible.shape, generator=generator).masked_fill(~eligible, torch.inf)
    rank = noise.argsort(dim=1).argsort(dim=1)
    counts = torch.tensor([kept_count(n, ratio) for n in eligible.sum(1).tolist()])
    return eligible & (rank < counts[:, None])


@torch.compiler.disable
def choose_structured(
    valid: Tensor, grid: Grid, time_ratio: float, freq_ratio: float, generator: torch.Generator | None
) -> Tensor:
    """(B, L) -> (B, L) bool: remove whole time columns and then whole frequency rows of the valid patches."""
    kept = valid.unflatten(1, grid)
    kept = kept & choose(kept.any(2), time_ratio, generator)[:, :, None]
    kept = kept & choose(kept.any(1), freq_ratio, generator)[:, None, :]
    return kept.flatten(1)


@torch.compiler.disable
def index(kept: Tensor, device: torch.device) -> Masking:
    """The masking on `device` that keeps the patches `kept` (B, L), a bool tensor on the CPU.

    Where no clip keeps any, as of a batch of muted recordings, K is 1 and that patch isn't attended to.
    """
    order = torch.argsort(kept, dim=1, descending=True, stable=True)
    ids_keep = order[:, : max(1, int(kept.sum(1).max()))]
    attend = unless_all(kept.gather(1, ids_keep), device)
    return Masking((~kept).float().to(device), ids_keep.to(device), order.argsort(dim=1).to(device), attend)


def keep_all(valid: Tensor) -> Masking:
    """The masking that keeps `valid` (B, L) with all patches in the input: invalid ones are not attended to.

    The encoder's output for the valid patches is the same as with `index`, at the cost of computing the others. No
    shape depends on the data, so that it can be exported as a graph (`raymae.serving.export`).
    """
    ids = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    return Masking((~valid).float(), ids, ids, valid)


@torch.compiler.disable
def unless_all(mask: Tensor, device: torch.device) -> Tensor | None:
    """Move a bool tensor from the CPU to `device`; None, with which attention is faster, if all of it is True."""
    return None if bool(mask.all()) else mask.to(device)
