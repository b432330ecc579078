"""Masking: which patches the encoder processes.

In training a mask is decided on the CPU, ahead of the step, from random bits that belong to the clip (numpy). Ratios
are the share REMOVED; a mask is 0 where a patch is kept and 1 where it is removed. Counts are those of Audio-MAE: `int`
of the kept share, per clip and of its valid patches (columns, rows) only, at least one. The number of tokens is that of
a clip whose patches are all valid: clips with fewer are filled up with patches that nothing attends to, so that no
shape depends on the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymae.config import ModelConfig
from raymae.models.patches import Grid

Drawn = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]


class RandomBits(Protocol):
    """Random bits of some clips (`raymae.features.draws.Draws`)."""

    def bits(self, purpose: str, count: int) -> NDArray[np.uint64]:
        """(B, count) of 64 random bits."""
        ...

    def repeated(self, times: int) -> RandomBits:
        """Bits of `times` items for each clip, all independent; an item's place is its clip's times `times` plus its
        number."""
        ...


class Kept(NamedTuple):
    """The patches in the encoder's input."""

    ids: Tensor
    """(B, K) int64: the kept patches of each clip in ascending order; clips with fewer are filled up with others."""
    attend: Tensor | None = None
    """(B, K) bool: which of `ids` are kept; None if all are."""


class Masking(NamedTuple):
    """The mask of a batch and its index tensors."""

    kept: Kept
    mask: Tensor
    """(B, L) float: 0 is keep, 1 is remove (also for patches that are not valid)."""
    ids_restore: Tensor
    """(B, L) int64: position of each patch when the kept ones come first; those below K are in `kept.ids`."""
    valid: Tensor | None = None
    """(B, L) bool: the patches that are part of the loss and are attended to; None if all are."""


def kept_count(n: int, ratio: float) -> int:
    """Number of patches (columns, rows) of n that are kept when the share `ratio` is removed."""
    return max(1, int(n * (1 - ratio)))


def kept_tokens(grid: Grid, model: ModelConfig) -> int:
    """Number of patches of a whole clip in the encoder's input in pre-training (without the class token)."""
    columns, rows = grid
    match model.mask_strategy:
        case "unstructured" | "inverse_block":
            return kept_count(columns * rows, model.mask_ratio)
        case "time":
            return kept_count(columns, model.mask_ratio) * rows
        case "frequency":
            return columns * kept_count(rows, model.mask_ratio)
        case "time_frequency":
            return kept_structured(grid, model.time_mask_ratio, model.freq_mask_ratio)


def kept_structured(grid: Grid, time_ratio: float, freq_ratio: float) -> int:
    """Number of patches of a whole clip that `choose_structured` keeps."""
    columns = kept_count(grid[0], time_ratio) if time_ratio else grid[0]
    return columns * (kept_count(grid[1], freq_ratio) if freq_ratio else grid[1])


# Drawing, on the CPU -----------------------------------------------------------------------------------------------


def draw_kept(valid: Bools, grid: Grid, model: ModelConfig, draws: RandomBits) -> Bools:
    """Draw a mask by the model's strategy: (B, L) valid -> (B, L) kept."""
    match model.mask_strategy:
        case "unstructured":
            return choose(valid, model.mask_ratio, draws.bits("mask", valid.shape[1]))
        case "time":
            return choose_structured(valid, grid, model.mask_ratio, 0, draws)
        case "frequency":
            return choose_structured(valid, grid, 0, model.mask_ratio, draws)
        case "time_frequency":
            return choose_structured(valid, grid, model.time_mask_ratio, model.freq_mask_ratio, draws)
        case "inverse_block":
            outside = ~in_blocks(valid, grid, model, draws)
            noise = draws.bits("mask", valid.shape[1]) >> np.uint64(1) | outside.astype(np.uint64) << np.uint64(63)
            return choose(valid, model.mask_ratio, noise)


def choose(eligible: Bools, ratio: float, noise: NDArray[np.uint64]) -> Bools:
    """(B, N) -> (B, N): keep each clip's eligible items with the least `noise` (B, N); the share `ratio` is removed."""
    if ratio == 0:
        return eligible
    counts = eligible.sum(1)
    if (counts == eligible.shape[1]).all():  # a partition costs a tenth of sorting
        most = kept_count(eligible.shape[1], ratio)
        kept = np.zeros_like(eligible)
        np.put_along_axis(kept, np.argpartition(noise, most - 1, axis=1)[:, :most], True, axis=1)
        return kept
    ranks = np.where(eligible, noise >> np.uint64(1), np.uint64(2**64 - 1)).argsort(1).argsort(1)
    least = np.array([kept_count(int(count), ratio) for count in counts])
    return np.asarray(eligible & (ranks < least[:, None]))


def choose_structured(valid: Bools, grid: Grid, time_ratio: float, freq_ratio: float, draws: RandomBits) -> Bools:
    """(B, L) -> (B, L): remove whole time columns and then whole frequency rows of the valid patches."""
    kept = valid.reshape(-1, *grid)
    kept = kept & choose(np.asarray(kept.any(2)), time_ratio, draws.bits("mask_columns", grid[0]))[:, :, None]
    kept = kept & choose(np.asarray(kept.any(1)), freq_ratio, draws.bits("mask_rows", grid[1]))[:, None, :]
    return kept.reshape(len(valid), -1)


def in_blocks(valid: Bools, grid: Grid, model: ModelConfig, draws: RandomBits) -> Bools:
    """(B, L) -> (B, L): the patches of square blocks around patches drawn, with replacement, among the valid ones.

    The blocks of data2vec 2.0 (Baevski et al. 2022, section 3.3) and EAT: as many as cover the kept share, and
    `mask_block_surplus` more, without overlaps; at least one. At the edges of the grid they are cut.
    """
    counts = valid.sum(1)
    share = 1 - model.mask_ratio + model.mask_block_surplus
    numbers = np.maximum(1, (counts * share / model.mask_block**2).astype(np.int64))
    bits = draws.bits("mask_blocks", int(numbers.max(initial=1)))
    chosen = (bits % counts.clip(min=1).astype(np.uint64)[:, None]).astype(np.int64)
    if not valid.all():
        chosen = np.take_along_axis(np.argsort(~valid, axis=1, kind="stable"), chosen, 1)
    clips, which = np.nonzero(np.arange(bits.shape[1]) < numbers[:, None])
    centres = np.zeros_like(valid)
    centres[clips, chosen[clips, which]] = True
    centres &= valid  # of clips without a valid patch
    return widen(widen(centres.reshape(-1, *grid), model.mask_block, 1), model.mask_block, 2).reshape(valid.shape)


def widen(places: Bools, length: int, axis: int) -> Bools:
    """Spread every True over `length` places along an axis, its own in the middle (of an even number, behind it)."""
    size, before = places.shape[axis], length // 2
    source, wide = np.moveaxis(places, axis, -1), np.zeros_like(places)
    target = np.moveaxis(wide, axis, -1)
    for shift in range(max(-before, 1 - size), min(length - before, size)):
        target[..., max(shift, 0) : size + min(shift, 0)] |= source[..., max(-shift, 0) : size - max(shift, 0)]
    return wide


def arrange_kept(kept: Bools, count: int, always: bool = False) -> tuple[Drawn, NDArray[np.int64]]:
    """The arrays of `Kept` for `count` tokens, and `Masking.ids_restore`, of kept patches (B, L).

    Args:
        always: with the array of `Kept.attend` also where all tokens are kept, so that every batch has the same arrays.
    """
    number = kept.sum(1, keepdims=True)
    before = np.cumsum(kept, 1, dtype=np.int64)
    places = np.arange(kept.shape[1])
    restore = np.where(kept, before - 1, number + places - before)
    order = np.empty_like(restore)
    np.put_along_axis(order, restore, places[None], 1)
    drawn: Drawn = {"ids_keep": order[:, :count]}
    if always or (number < count).any():
        drawn["attend"] = np.arange(count) < number
    return drawn, restore


def arrange(kept: Bools, valid: Bools, count: int, always: bool = False) -> Drawn:
    """The arrays of a `Masking` with `count` tokens; `always` as in `arrange_kept`, for `valid` too."""
    drawn, restore = arrange_kept(kept, count, always)
    drawn |= {"ids_restore": restore, "kept": kept}
    return drawn | ({"valid": valid} if always or not valid.all() else {})


# On the device -----------------------------------------------------------------------------------------------------


def kept_of(drawn: Mapping[str, Tensor]) -> Kept:
    """The `Kept` of the tensors of `arrange_kept`."""
    return Kept(drawn["ids_keep"], drawn.get("attend"))


def masking_of(drawn: Mapping[str, Tensor]) -> Masking:
    """The `Masking` of the tensors of `arrange`."""
    return Masking(kept_of(drawn), (~drawn["kept"]).float(), drawn["ids_restore"], drawn.get("valid"))


def every(valid: Tensor | None, batch: int, patches: int, device: torch.device) -> Kept:
    """All L patches of B clips in the encoder's input, of which nothing attends to those that aren't `valid` (B, L);
    None: all are.

    No shape depends on the data, so that nothing is read back from a GPU, and a graph can be exported.
    """
    return Kept(torch.arange(patches, device=device).expand(batch, patches), valid)


def only(valid: Tensor) -> Masking:
    """The masking that keeps the patches `valid` (B, L).

    On a CPU the others are left out of the encoder's input as far as no clip of the batch needs them. Where no clip
    keeps any, as of a batch of muted recordings, K is 1 and that patch isn't attended to. On other devices all patches
    are in the input (`every`), which gives the same output for those that are valid.
    """
    if valid.device.type != "cpu":
        ids = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        return Masking(Kept(ids, valid), (~valid).float(), ids, valid)
    kept = valid.numpy()
    drawn = arrange(kept, kept, max(1, int(kept.sum(1).max(initial=0))))
    return masking_of({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in drawn.items()})
