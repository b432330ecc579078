"""Masks: exact counts for every strategy, ratio and grid, whole columns and rows, only valid patches, reproducible."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import ModelConfig
from raymae.models.masking import choose_structured, draw_kept, index, kept_count, kept_tokens

STRATEGIES = ["unstructured", "time", "frequency", "time_frequency"]
RATIOS = st.sampled_from([0.0, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8, 0.95])
GRIDS = st.tuples(st.integers(1, 90), st.integers(1, 17))


def draw(valid: torch.Tensor, grid: tuple[int, int], model: ModelConfig, seed: int = 0) -> torch.Tensor:
    return draw_kept(valid, grid, model, torch.Generator().manual_seed(seed))


@given(grid=GRIDS, strategy=st.sampled_from(STRATEGIES), ratio=RATIOS, freq_ratio=RATIOS)
def test_counts_are_exact(grid: tuple[int, int], strategy: str, ratio: float, freq_ratio: float) -> None:
    columns, rows = grid
    model = ModelConfig(mask_strategy=strategy, mask_ratio=ratio, time_mask_ratio=ratio, freq_mask_ratio=freq_ratio)
    kept = draw(torch.ones(3, columns * rows, dtype=torch.bool), grid, model)
    assert kept.sum(1).tolist() == [kept_tokens(grid, model)] * 3
    expected = {
        "unstructured": max(1, int(columns * rows * (1 - ratio))),
        "time": max(1, int(columns * (1 - ratio))) * rows,
        "frequency": columns * max(1, int(rows * (1 - ratio))),
        "time_frequency": max(1, int(columns * (1 - ratio))) * max(1, int(rows * (1 - freq_ratio))),
    }
    assert kept_tokens(grid, model) == expected[strategy]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_than_a_thousand_tokens(strategy: str) -> None:
    grid = (1200, 16)
    model = ModelConfig(mask_strategy=strategy)
    kept = draw(torch.ones(2, 1200 * 16, dtype=torch.bool), grid, model)
    assert kept.sum(1).tolist() == [kept_tokens(grid, model)] * 2


@pytest.mark.parametrize(("strategy", "axis"), [("time", 2), ("frequency", 1)])
def test_whole_columns_or_rows_are_removed(strategy: str, axis: int) -> None:
    grid = (9, 7)
    kept = draw(torch.ones(4, 63, dtype=torch.bool), grid, ModelConfig(mask_strategy=strategy, mask_ratio=0.6))
    kept = kept.unflatten(1, grid)
    assert torch.equal(kept.any(axis), kept.all(axis))


@given(seed=st.integers(0, 1000), strategy=st.sampled_from(STRATEGIES), ratio=RATIOS)
def test_only_valid_patches_are_kept_and_at_least_one(seed: int, strategy: str, ratio: float) -> None:
    grid = (6, 5)
    valid = torch.rand(8, 30, generator=torch.Generator().manual_seed(seed)) < torch.linspace(0, 1, 8)[:, None]
    model = ModelConfig(mask_strategy=strategy, mask_ratio=ratio, time_mask_ratio=ratio, freq_mask_ratio=ratio)
    kept = draw(valid, grid, model, seed)
    assert not (kept & ~valid).any()
    assert torch.equal(kept.any(1), valid.any(1))
    if strategy == "unstructured":
        counts = [kept_count(n, ratio) if n else 0 for n in valid.sum(1).tolist()]
        assert kept.sum(1).tolist() == counts


def test_a_mask_follows_from_the_generator_alone() -> None:
    valid = torch.ones(4, 640, dtype=torch.bool)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(masks))
        masks.append(draw(valid, (40, 16), ModelConfig(), seed))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])


def test_every_patch_is_kept_equally_often() -> None:
    kept = draw(torch.ones(4000, 20, dtype=torch.bool), (5, 4), ModelConfig(mask_ratio=0.75))
    assert torch.allclose(kept.float().mean(0), torch.tensor(0.25), atol=0.03)


def test_ids_restore_brings_the_patches_back() -> None:
    kept = draw(torch.ones(3, 35, dtype=torch.bool), (7, 5), ModelConfig(mask_ratio=0.6))
    masking = index(kept, torch.device("cpu"))
    values = torch.arange(35).expand(3, -1)
    order = torch.cat([masking.ids_keep, torch.stack([v[~k] for v, k in zip(values, kept, strict=True)])], dim=1)
    assert torch.equal(order.gather(1, masking.ids_restore), values)
    assert torch.equal(masking.mask, (~kept).float())
    assert masking.attend is None


def test_clips_that_keep_different_numbers_are_filled_up() -> None:
    kept = torch.tensor([[False, True, True, False], [False, False, True, False]])
    masking = index(kept, torch.device("cpu"))
    assert masking.attend is not None
    assert masking.attend.tolist() == [[True, True], [True, False]]
    assert [ids[seen].tolist() for ids, seen in zip(masking.ids_keep, masking.attend, strict=True)] == [[1, 2], [2]]


def test_structured_masking_chooses_among_valid_columns() -> None:
    valid = torch.zeros(1, 10, 4, dtype=torch.bool)
    valid[:, :6] = True
    kept = choose_structured(valid.flatten(1), (10, 4), 0.5, 0.25, None).unflatten(1, (10, 4))
    assert kept.any(2).sum() == 3
    assert kept.any(1).sum() == 3
    assert kept.sum() == 9
