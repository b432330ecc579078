"""Silent clips, and silent crops of others, add nothing to a loss and leave the others' losses as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from raymae.audio.clip_reader import ClipReader
from raymae.config import AugmentConfig
from raymae.features.augment import apply_coloration, apply_mixup, draw_coloration, draw_mixup
from raymae.features.draws import Draws
from raymae.features.manifest import Tally
from raymae.features.shard import SILENT
from raymae.features.store import FeatureStore
from raymae.features.write import plan_shards, write_shard
from raymae.models import MaskedAutoencoder
from raymae.storage.folder import Folder
from raymae.training.batches.passes import Passes
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import Group
from raymae.training.feeder import prepare
from raymae.training.run_stage import build_task
from raymae.training.worker import BareSession
from tests.support.audio_files import TINY_AUDIO, write_clips
from tests.support.training import TINY, make_spec

SHAPE = TINY_AUDIO.n_frames, TINY_AUDIO.n_mels


def batch_with_silence() -> tuple[torch.Tensor, torch.Tensor]:
    """Three clips, the second of them silent."""
    log_mel = torch.randn(3, *SHAPE)
    log_mel[1] = TINY_AUDIO.silence
    return log_mel, torch.full((3,), SHAPE[0])


def test_a_reconstruction_of_silence_costs_nothing() -> None:
    model = MaskedAutoencoder(TINY_AUDIO, TINY.model)
    log_mel, frames = batch_with_silence()
    for clips in (slice(None), slice(1, 2)):
        batch = log_mel[clips]
        masking = model.random_masking(batch, frames[clips], Draws(0, np.arange(len(batch))))
        output = model(batch, masking)
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(one.grad is None or one.grad.isfinite().all() for one in model.parameters())
    assert output.error.tolist() == [0.0]


ALONE: dict[str, Any] = {"mixing_group": 4, "augment": AugmentConfig(roll_p=0.5, eq_p=0.5, gain_db=3.0)}
"""Augmentations that mix no clips."""
CONFIG = replace(
    TINY,
    pretrain=replace(TINY.pretrain, **ALONE),
    finetune=replace(TINY.finetune, drop_path=0.0, label_smoothing=0.1, **ALONE),
)


@pytest.mark.parametrize(("kind", "labels"), [("pretrain", "single"), ("finetune", "single"), ("finetune", "multi")])
def test_silent_clips_have_no_part_in_a_step(store: FeatureStore, tmp_path: Path, kind: str, labels: Any) -> None:
    """The count, the loss and the gradients are those of the other clips alone."""
    config = replace(CONFIG, finetune=replace(CONFIG.finetune, labels=labels))
    task = build_task(make_spec(store, tmp_path, kind, config))
    _, (group, *_) = next(BareSession(store, task.spec.artifact).groups(task.order, 0))
    group.values[[1, 3]] = TINY_AUDIO.silence
    others = [alone(group, number) for number in (0, 2)]
    found = []
    for groups in ([group], others):
        step = prepare(task, 0, groups, Passes(most=2, largest=len(groups)), Transfer(torch.device("cpu")))
        (batch,) = step.batches
        loss, _ = task.training_step(task.model, batch, dict.fromkeys(task.counted, torch.tensor(10.0)))
        loss.backward()
        gradients = [one.grad.clone() for one in task.model.parameters() if one.grad is not None]
        task.model.zero_grad()
        found.append((loss.detach(), step.counts, gradients))
    (loss, counts, gradients), (other_loss, other_counts, other_gradients) = found
    assert loss > 0
    assert counts.tolist() == other_counts.tolist()
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradients, other_gradients)


def alone(group: Group, number: int) -> Group:
    """One of its clips as a group of its own, at its place."""
    one = slice(number, number + 1)
    return Group(group.place + number, group.rows[one], group.values[one], group.valid[one])


def test_nobody_is_mixed_with_silence() -> None:
    log_mel, frames = batch_with_silence()
    sounding, target = np.array([True, False, True]), np.eye(3, dtype=np.float32)
    always, partners = AugmentConfig(mixup_p=1.0, mixstyle_p=1.0), set()
    for seed in range(10):
        draws = Draws(seed, np.arange(3), group=3)
        labels, _, drawn = draw_mixup(target, frames.numpy(), always, draws, sounding)
        partner = drawn["mixup_partner"]
        partners |= {int(partner[0]), int(partner[2])}
        mixed = apply_mixup(log_mel, {name: torch.from_numpy(value) for name, value in drawn.items()})
        for clip in (0, 2):
            assert labels[clip, 1] == 0
            if partner[clip] == 1:
                torch.testing.assert_close(mixed[clip], log_mel[clip])
        style = draw_coloration(frames.numpy(), always, TINY_AUDIO, draws)
        styled = apply_coloration(log_mel, frames, {name: torch.from_numpy(value) for name, value in style.items()})
        assert (styled[[0, 2]].std(1) > 0.3).all()
    assert partners == {0, 1, 2}


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
