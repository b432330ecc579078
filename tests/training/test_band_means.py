"""Band means of masked clips: a device's offsets don't reach a classifier that subtracts them, SpecAugment or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import AugmentConfig, ConsistencyConfig
from raymae.features.augment import add_offsets, spec_augment
from raymae.features.store import FeatureStore
from raymae.models.classifier import subtract_band_mean
from tests.support.training import TINY, make_spec, passes

MASKED = AugmentConfig(freq_mask_param=8, time_mask_param=16)


@given(seed=st.integers(0, 2**32), valid=st.integers(1, 40), stripe=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_masking_before_subtraction_is_masking_after_it(seed: int, valid: int, stripe: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    clip, frames = torch.randn(1, 40, 12, generator=generator), torch.tensor([valid])
    offsets = 3 * torch.randn(1, 12, generator=generator)
    hidden = torch.tensor([sorted(min(one, valid) for one in stripe)])
    bands = torch.tensor([[4, 7]])
    first, end = hidden[0].tolist()
    seen = torch.ones(40, dtype=torch.bool)
    seen[first:end] = False
    seen[valid:] = False
    expected = torch.zeros(valid, 12)
    if seen.any():
        expected[seen[:valid]] = clip[0, seen] - clip[0, seen].mean(0)
    expected[:, 4:7] = 0
    for one in (clip, add_offsets(clip, frames, offsets)):
        found = subtract_band_mean(spec_augment(one, frames, bands, hidden), frames, hidden)[0]
        torch.testing.assert_close(found[:valid], expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(found[valid:], one[0, valid:])


@pytest.mark.parametrize(("kind", "cnn"), [("finetune", None), ("finetune", "test_resnet"), ("consistency", None)])
def test_the_loss_does_not_know_the_device(store: FeatureStore, tmp_path: Path, kind: str, cnn: str | None) -> None:
    augment = replace(MASKED, mixup_p=0.5, roll_p=0.5)
    config = replace(
        TINY,
        finetune=replace(TINY.finetune, subtract_band_mean=True, augment=augment),
        consistency=ConsistencyConfig(method="softmatch", ratio=2, strong=MASKED),
    )
    more: dict[str, Any] = {"cnn": cnn} if cnn else {}
    task, step = next(passes(make_spec(store, tmp_path, kind, config, **more)))
    offsets = 2 * torch.randn(1, config.audio.n_mels, generator=torch.Generator().manual_seed(0))
    totals = dict(zip(task.counted, torch.from_numpy(step.counts).float().unbind(), strict=True))
    task.model.eval()  # dropout and batch norm would differ
    for parameter in task.model.parameters():  # a head of zeros says the same of every clip
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for batch in step.batches:
        frames = torch.full((len(batch.log_mel),), batch.log_mel.shape[1])
        batch.log_mel = batch.log_mel.float()
        with torch.no_grad():
            here, _ = task.training_step(task.model, batch, totals)
            batch.log_mel = add_offsets(batch.log_mel, frames, offsets.expand(len(frames), -1))
            elsewhere, _ = task.training_step(task.model, batch, totals)
        torch.testing.assert_close(here, elsewhere, atol=1e-4, rtol=1e-4)
