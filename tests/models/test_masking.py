"""Masks: exact counts for every strategy, ratio and grid, whole columns and rows, only valid patches, reproducible."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.config import ModelConfig
from raymae.models import Encoder
from raymae.models.masking import (
    Kept,
    arrange,
    choose_structured,
    draw_kept,
    every,
    in_blocks,
    kept_count,
    kept_structured,
    kept_tokens,
    masking_of,
    only,
)
from tests.support.audio_files import TINY_AUDIO
from tests.support.masks import keeping, make_draws, tensors
from tests.support.training import TINY

STRATEGIES = ["unstructured", "time", "frequency", "time_frequency", "inverse_block"]
RATIOS = st.sampled_from([0.0, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8, 0.95])
GRIDS = st.tuples(st.integers(1, 90), st.integers(1, 17))


def removing(strategy: str, ratio: float, freq_ratio: float) -> ModelConfig:
    """The model that removes a share of the patches, or shares of columns and rows; blocks always remove some."""
    ratios = {"mask_ratio": ratio, "time_mask_ratio": ratio, "freq_mask_ratio": freq_ratio}
    return ModelConfig(mask_strategy=strategy, **ratios | ({"mask_ratio": ratio or 0.5} if "block" in strategy else {}))


def draw(valid: NDArray[np.bool_], grid: tuple[int, int], model: ModelConfig, seed: int = 0) -> NDArray[np.bool_]:
    return draw_kept(valid, grid, model, make_draws(len(valid), seed))


def everything(clips: int, patches: int) -> NDArray[np.bool_]:
    return np.ones((clips, patches), np.bool_)


def partly_valid(seed: int) -> NDArray[np.bool_]:
    """Eight clips of (6, 5) patches, from none valid to all."""
    return np.random.default_rng(seed).random((8, 30)) < np.linspace(0, 1, 8)[:, None]


@given(grid=GRIDS, strategy=st.sampled_from(STRATEGIES), ratio=RATIOS, freq_ratio=RATIOS)
def test_counts_are_exact(grid: tuple[int, int], strategy: str, ratio: float, freq_ratio: float) -> None:
    columns, rows = grid
    model = removing(strategy, ratio, freq_ratio)
    kept = draw(everything(3, columns * rows), grid, model)
    assert kept.sum(1).tolist() == [kept_tokens(grid, model)] * 3
    expected = {
        "unstructured": max(1, int(columns * rows * (1 - ratio))),
        "time": max(1, int(columns * (1 - ratio))) * rows,
        "frequency": columns * max(1, int(rows * (1 - ratio))),
        "time_frequency": max(1, int(columns * (1 - ratio))) * max(1, int(rows * (1 - freq_ratio))),
        "inverse_block": max(1, int(columns * rows * (1 - (ratio or 0.5)))),
    }
    assert kept_tokens(grid, model) == expected[strategy]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_than_a_thousand_tokens(strategy: str) -> None:
    grid = (1200, 16)
    model = ModelConfig(mask_strategy=strategy)
    kept = draw(everything(2, 1200 * 16), grid, model)
    assert kept.sum(1).tolist() == [kept_tokens(grid, model)] * 2


@pytest.mark.parametrize(("strategy", "axis"), [("time", 2), ("frequency", 1)])
def test_whole_columns_or_rows_are_removed(strategy: str, axis: int) -> None:
    grid = (9, 7)
    kept = draw(everything(4, 63), grid, ModelConfig(mask_strategy=strategy, mask_ratio=0.6))
    kept = kept.reshape(-1, *grid)
    assert np.array_equal(kept.any(axis), kept.all(axis))


@given(seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES), ratio=RATIOS)
def test_only_valid_patches_are_kept_and_at_least_one(seed: int, strategy: str, ratio: float) -> None:
    grid, valid = (6, 5), partly_valid(seed)
    model = removing(strategy, ratio, ratio)
    kept = draw(valid, grid, model, seed)
    assert not (kept & ~valid).any()
    assert np.array_equal(kept.any(1), valid.any(1))
    if strategy in ("unstructured", "inverse_block"):
        counts = [kept_count(n, model.mask_ratio) if n else 0 for n in valid.sum(1).tolist()]
        assert kept.sum(1).tolist() == counts


@given(grid=GRIDS, length=st.integers(1, 7), ratio=RATIOS, surplus=st.floats(0, 0.3), seed=st.integers(0, 99))
def test_blocks_are_kept(grid: tuple[int, int], length: int, ratio: float, surplus: float, seed: int) -> None:
    """Exact counts; nothing outside the blocks as long as they suffice, and all of them if they don't."""
    model = ModelConfig(
        mask_strategy="inverse_block", mask_ratio=ratio or 0.5, mask_block=length, mask_block_surplus=surplus
    )
    whole = everything(3, grid[0] * grid[1])
    blocks = in_blocks(whole, grid, model, make_draws(3, seed))
    kept = draw(whole, grid, model, seed)
    count = kept_tokens(grid, model)
    for mine, block in zip(kept, blocks, strict=True):
        assert mine.sum() == count
        assert not (mine & ~block).any() if block.sum() >= count else not (block & ~mine).any()


@settings(max_examples=25)
@given(length=st.integers(1, 7), seed=st.integers(0, 99))
def test_blocks_are_squares_around_valid_patches(length: int, seed: int) -> None:
    grid, valid = (13, 9), np.random.default_rng(seed).random((4, 117)) < np.array([[0.0], [0.1], [0.6], [1.0]])
    model = ModelConfig(mask_strategy="inverse_block", mask_block=length)
    found = in_blocks(valid, grid, model, make_draws(4, seed))
    for clip, mine in enumerate(found.reshape(-1, *grid)):
        most = max(1, int(valid[clip].sum() * (1 - 0.8 + 0.07) / length**2))
        squares = np.zeros(grid, np.bool_)
        inside = 0
        for column, row in zip(*np.nonzero(valid[clip].reshape(grid)), strict=True):
            square = (
                slice(max(0, column - length // 2), column - length // 2 + length),
                slice(max(0, row - length // 2), row - length // 2 + length),
            )
            if mine[square].all():
                squares[square] = True
                inside += 1
        assert np.array_equal(squares, mine), "every patch of a block lies in a whole one"
        assert mine.sum() <= most * length**2
        assert (inside > 0) == valid[clip].any()


def test_blocks_are_more_compact_than_single_patches() -> None:
    """EAT's masks of 10 s: of 512 patches 102 are kept, nearly all beside another one."""
    grid, share = (64, 8), {}
    for strategy in ("inverse_block", "unstructured"):
        kept = draw(everything(200, 512), grid, ModelConfig(mask_strategy=strategy, mask_ratio=0.8)).reshape(-1, *grid)
        pairs = (kept[:, 1:] & kept[:, :-1]).sum() + (kept[:, :, 1:] & kept[:, :, :-1]).sum()
        share[strategy] = pairs / kept.sum()
    assert share["inverse_block"] > 2.5 * share["unstructured"]


@pytest.mark.parametrize("strategy", ["unstructured", "inverse_block"])
def test_a_mask_follows_from_the_draws_alone(strategy: str) -> None:
    masks = []
    for seed in (1, 1, 2):
        np.random.seed(len(masks))
        masks.append(draw(everything(4, 640), (40, 16), ModelConfig(mask_strategy=strategy), seed))
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[0][0], masks[0][1])


@given(seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES))
def test_a_clip_has_its_mask_beside_any_other(seed: int, strategy: str) -> None:
    """Whole clips are drawn faster than others: nothing of it shows."""
    model, grid, valid = ModelConfig(mask_strategy=strategy), (6, 5), partly_valid(seed)
    valid[7] = True
    together = draw(valid, grid, model, seed)
    whole = draw_kept(valid[7:], grid, model, make_draws(8, seed).select(slice(7, 8), 1))
    assert np.array_equal(together[7:], whole)


def test_every_patch_is_kept_equally_often() -> None:
    valid = everything(4001, 20)
    for first in (True, False):  # of whole clips alone, and beside one that isn't
        valid[0, 3] = first
        kept = draw(valid, (5, 4), ModelConfig(mask_ratio=0.75))[1:]
        np.testing.assert_allclose(kept.mean(0), 0.25, atol=0.03)


def test_ids_restore_brings_the_patches_back() -> None:
    kept = torch.from_numpy(draw(everything(3, 35), (7, 5), ModelConfig(mask_ratio=0.6)))
    masking = keeping(kept)
    values = torch.arange(35).expand(3, -1)
    order = torch.cat([masking.kept.ids, torch.stack([v[~k] for v, k in zip(values, kept, strict=True)])], dim=1)
    assert torch.equal(order.gather(1, masking.ids_restore), values)
    assert torch.equal(masking.mask, (~kept).float())
    assert masking.kept.attend is None
    assert masking.valid is None


def test_clips_that_keep_different_numbers_are_filled_up() -> None:
    kept = torch.tensor([[False, True, True, False], [False, False, True, False]])
    ids, attend = keeping(kept).kept
    assert attend is not None
    assert attend.tolist() == [[True, True], [True, False]]
    assert [one[seen].tolist() for one, seen in zip(ids, attend, strict=True)] == [[1, 2], [2]]


@given(seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES), ratio=RATIOS, always=st.booleans())
def test_the_number_of_tokens_is_that_of_a_whole_clip(seed: int, strategy: str, ratio: float, always: bool) -> None:
    model = removing(strategy, ratio, ratio)
    count, valid = kept_tokens((6, 5), model), partly_valid(seed)
    for one in (valid, valid[:1], np.ones_like(valid)):
        kept = draw(one, (6, 5), model, seed)
        drawn = arrange(kept, one, count, always)
        assert drawn["ids_keep"].shape == (len(one), count)
        assert ("attend" in drawn) == (always or bool((kept.sum(1) < count).any()))
        assert ("valid" in drawn) == (always or not one.all())
        attend = drawn.get("attend", np.ones_like(drawn["ids_keep"], np.bool_))
        for ids, seen, mine in zip(drawn["ids_keep"], attend, kept, strict=True):
            assert ids[seen].tolist() == np.flatnonzero(mine).tolist()
            assert len(set(ids.tolist())) == count
        assert np.array_equal(np.sort(drawn["ids_restore"], 1), np.tile(np.arange(30), (len(one), 1)))


@given(seed=st.integers(0, 1000))
def test_what_fills_a_clip_up_changes_nothing(seed: int) -> None:
    """Neither the values of the patches that nothing attends to, nor which they are, nor how many."""
    torch.manual_seed(seed)
    encoder = Encoder(TINY_AUDIO, TINY.model).eval()
    patches = encoder.patchify(torch.randn(8, 48, 32))
    valid = partly_valid(seed)[:, :24]
    kept = draw(valid, patches.grid, TINY.model, seed)
    few, many = (masking_of(tensors(arrange(kept, valid, count))).kept for count in (int(kept.sum(1).max()), 24))
    numbers = torch.from_numpy(kept.sum(1))
    attend = torch.arange(24) < numbers[:, None]
    with torch.no_grad():
        expected = encoder(patches, few)
        removed = ~torch.from_numpy(kept)[:, :, None]
        noise = torch.where(removed, 50 * torch.randn_like(patches.values), patches.values)
        others = Kept(many.ids.where(attend, many.ids[:, -1:]), attend)
        for found in (encoder(patches, many), encoder(patches._replace(values=noise), many), encoder(patches, others)):
            for mine, wanted, number in zip(found, expected, numbers.tolist(), strict=True):
                torch.testing.assert_close(mine[: 1 + number], wanted[: 1 + number], atol=1e-4, rtol=1e-4)


def test_every_patch_in_the_input_or_only_those_that_are_valid() -> None:
    """The encoder's output is the same; `only` leaves out what no clip needs, and keeps one patch of silent batches."""
    torch.manual_seed(0)
    encoder = Encoder(TINY_AUDIO, TINY.model).eval()
    patches = encoder.patchify(torch.randn(8, 48, 32))
    valid = torch.from_numpy(partly_valid(3)[:, :24])[:7]
    patches = patches._replace(values=patches.values[:7])
    few, many = only(valid).kept, every(valid, 7, 24, valid.device)
    assert few.ids.shape == (7, int(valid.sum(1).max()))
    assert few.ids.shape[1] < many.ids.shape[1] == 24
    one, other = encoder(patches, few), encoder(patches, many)
    for clip, mine in enumerate(valid):
        torch.testing.assert_close(one[clip, 0], other[clip, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one[clip, 1 : 1 + mine.sum()], other[clip, 1:][mine], atol=1e-4, rtol=1e-4)
    silent = only(torch.zeros(2, 24, dtype=torch.bool))
    assert silent.kept.attend is not None
    assert silent.kept.attend.tolist() == [[False], [False]]


def test_structured_masking_chooses_among_valid_columns() -> None:
    valid = np.zeros((1, 10, 4), np.bool_)
    valid[:, :6] = True
    kept = choose_structured(valid.reshape(1, -1), (10, 4), 0.5, 0.25, make_draws(1)).reshape(1, 10, 4)
    assert kept_structured((10, 4), 0.5, 0.25) == 15
    assert kept.any(2).sum() == 3
    assert kept.any(1).sum() == 3
    assert kept.sum() == 9
