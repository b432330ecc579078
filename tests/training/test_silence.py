"""Silent clips, and silent crops of others, add nothing to a loss and leave the others' losses as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from raymae.audio.clip_reader import ClipReader
from raymae.config import AugmentConfig
from raymae.features.augment import freq_mixstyle, mixup
from raymae.features.manifest import Tally
from raymae.features.shard import SILENT
from raymae.features.write import plan_shards, write_shard
from raymae.models import MaskedAutoencoder
from raymae.storage.folder import Folder
from raymae.training.tasks.finetune import multi_loss, single_loss
from tests.support.audio_files import TINY_AUDIO, write_clips
from tests.support.training import TINY

SHAPE = TINY_AUDIO.n_frames, TINY_AUDIO.n_mels


def batch_with_silence() -> tuple[torch.Tensor, torch.Tensor]:
    """Three clips, the second of them silent."""
    log_mel = torch.randn(3, *SHAPE)
    log_mel[1] = TINY_AUDIO.silence
    return log_mel, torch.full((3,), SHAPE[0])


def test_a_reconstruction_of_silence_costs_nothing() -> None:
    model = MaskedAutoencoder(TINY_AUDIO, TINY.model)
    log_mel, frames = batch_with_silence()
    for batch in (log_mel, log_mel[1:2]):
        output = model(batch, frames[: len(batch)])
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(one.grad is None or one.grad.isfinite().all() for one in model.parameters())
    assert output.loss_per_clip.tolist() == [0.0]


@pytest.mark.parametrize("loss", [single_loss, multi_loss])
def test_only_sounding_clips_have_a_gradient(loss: type[single_loss]) -> None:  # type: ignore[valid-type]
    target, sounding = torch.eye(3), torch.tensor([True, False, True])
    logits = torch.randn(3, 3, requires_grad=True)
    other = logits.detach().clone().requires_grad_(True)
    loss(logits, target, 0.1, sounding)[0].backward()  # type: ignore[operator]
    loss(other, target, 0.1, torch.ones(3, dtype=torch.bool))[0].backward()  # type: ignore[operator]
    assert logits.grad is not None
    assert other.grad is not None
    assert logits.grad[1].abs().max() == 0
    torch.testing.assert_close(logits.grad[[0, 2]], other.grad[[0, 2]])


def test_nobody_is_mixed_with_silence() -> None:
    log_mel, frames = batch_with_silence()
    sounding, target = torch.tensor([True, False, True]), torch.eye(3)
    always = AugmentConfig(mixup_p=1.0, mixstyle_p=1.0)
    for seed in range(10):
        partner = torch.randperm(3, generator=at_permutation(seed))
        mixed, labels, _ = mixup(log_mel, target, frames, always, torch.Generator().manual_seed(seed), sounding)
        for clip in (0, 2):
            assert (labels[clip, 1] == 0).all()
            if partner[clip] == 1:
                torch.testing.assert_close(mixed[clip], log_mel[clip])
        styled, _ = freq_mixstyle(log_mel, frames, always, TINY_AUDIO, torch.Generator().manual_seed(seed))
        assert (styled[[0, 2]].std(1) > 0.3).all()


def at_permutation(seed: int) -> torch.Generator:
    """A generator at the point at which `mixup` draws the partners."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand((), generator=generator)
    torch.randint(2**62, (), generator=generator)
    return generator


def test_silent_files_are_left_out_and_counted_apart(tmp_path: Path) -> None:
    clips = write_clips(tmp_path, 20)
    paths = clips["path"].to_pylist()
    soundfile.write(paths[3], np.zeros(5000), 8000)
    Path(paths[4]).write_bytes(b"no audio")
    plans = plan_shards(clips, TINY_AUDIO, 0.1)
    tally, reader, shards = Tally(clips, plans), ClipReader(TINY_AUDIO, 10), Folder(str(tmp_path / "shards"))
    rows = 0
    for number, plan in enumerate(plans):
        summary = write_shard(shards, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
        tally.add(number, summary)
        rows += summary["rows"]
    manifest = tally.manifest(TINY_AUDIO)
    assert (rows, manifest["clips"], manifest["quarantined"], manifest["silent"]) == (18, 18, 1, 1)
    listed = {row["path"]: row["reason"] for row in tally.quarantine().to_pylist()}
    assert listed[paths[3]] == SILENT
    assert listed[paths[4]].startswith("can't be decoded")
