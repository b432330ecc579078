"""Which patches and clips hold sound: found ahead of a step with numpy as in the models with torch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.config import CONSTANT
from raymae.models.patches import (
    fit_positions,
    grid_size,
    has_sound,
    moving_patches,
    patchify,
    recorded,
    sounding_clips,
    valid_patches,
)

SILENCE = -1.7


@given(columns=st.integers(1, 12), rows=st.integers(1, 5), grid=st.tuples(st.integers(1, 12), st.integers(1, 5)))
def test_positions_of_a_shorter_grid_are_cut_along_time(columns: int, rows: int, grid: tuple[int, int]) -> None:
    table = torch.randn(columns, rows, 8, generator=torch.Generator().manual_seed(0))
    found = fit_positions(table, grid).unflatten(0, grid)
    shared = min(columns, grid[0])
    if grid[0] <= columns:
        # whatever the rows, a patch's position doesn't know how long the clip is
        whole = fit_positions(table, (columns, grid[1])).unflatten(0, (columns, grid[1]))
        torch.testing.assert_close(found, whole[:shared], atol=1e-5, rtol=1e-5)
    if rows == grid[1] and grid[0] <= columns:
        assert torch.equal(found, table[:shared])
    assert found.isfinite().all()


@st.composite
def batches(draw: st.DrawFn) -> tuple[NDArray[np.float16], NDArray[np.int64], tuple[int, int]]:
    """Clips (B, T, F) with silent and barely moving stretches, or a single value that moves; their valid frames, of
    which there may be none; a patch size."""
    n_frames, n_mels = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    patch_size = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    log_mel = rng.normal(size=(6, n_frames, n_mels)) * rng.choice([0, 1e-4, 1], (6, 1, 1), p=[0.3, 0.2, 0.5])
    log_mel += rng.normal(size=(6, 1, n_mels))  # silence has an offset in each band
    valid_frames = rng.integers(0, n_frames + 1, 6)
    for clip, valid in zip(log_mel, valid_frames, strict=True):
        for _ in range(rng.integers(3)):
            first, last = np.sort(rng.integers(0, n_frames + 1, 2))
            clip[first:last, rng.integers(n_mels) :] = SILENCE
        if rng.random() < 0.5:
            clip[rng.integers(n_frames), rng.integers(n_mels)] += rng.choice([0.5, 3 * CONSTANT])
        clip[valid:] = SILENCE
    return log_mel.astype(np.float16), valid_frames, patch_size


@given(batches())
def test_the_host_finds_the_patches_and_clips_that_the_models_find(
    batch: tuple[NDArray[np.float16], NDArray[np.int64], tuple[int, int]],
) -> None:
    log_mel, valid_frames, patch_size = batch
    grid = grid_size(*log_mel.shape[1:], patch_size)
    values, frames = torch.from_numpy(log_mel).float(), torch.from_numpy(valid_frames)
    patches = patchify(values, patch_size, float(np.float16(SILENCE)))
    moving = moving_patches(log_mel, patch_size, SILENCE)
    whole = recorded(*grid, patch_size[0], valid_frames)
    assert np.array_equal(moving & whole, valid_patches(patches, patch_size, grid[1], frames).numpy())
    everywhere = torch.full((6,), grid[0] * patch_size[0])
    assert np.array_equal(moving, valid_patches(patches, patch_size, grid[1], everywhere).numpy())
    # a patch of a clip that is shorter than it moves where the padding begins
    inside = moving & whole & (valid_frames >= patch_size[0])[:, None]
    assert np.array_equal(sounding_clips(log_mel, valid_frames, inside), has_sound(values, frames).numpy())


@given(batches())
def test_only_clips_with_sound_have_patches_with_sound(
    batch: tuple[NDArray[np.float16], NDArray[np.int64], tuple[int, int]],
) -> None:
    log_mel, valid_frames, patch_size = batch
    grid = grid_size(*log_mel.shape[1:], patch_size)
    found = moving_patches(log_mel, patch_size, SILENCE) & recorded(*grid, patch_size[0], valid_frames)
    sounding = has_sound(torch.from_numpy(log_mel).float(), torch.from_numpy(valid_frames)).numpy()
    long = valid_frames >= patch_size[0]
    assert not (found.any(1) & ~sounding)[long].any()
