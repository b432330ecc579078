"""A tiny configuration, and helpers that train its stages without Ray."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from raymae.config import AugmentConfig, Config, FinetuneConfig, LatentConfig, ModelConfig, PretrainConfig
from raymae.features.draws import mix
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.training.batches.transfer import Transfer
from raymae.training.feeder import plan_passes, prepared_steps
from raymae.training.run_stage import build_task
from raymae.training.spec import StageSpec
from raymae.training.step import PreparedStep
from raymae.training.tasks.base import Task
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.audio_files import TINY_AUDIO

TINY = Config(
    audio=TINY_AUDIO,
    model=ModelConfig(
        patch_size=(8, 8),
        embed_dim=32,
        depth=2,
        num_heads=2,
        decoder="light",
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
        mask_ratio=0.6,
    ),
    pretrain=PretrainConfig(
        epochs=8,
        warmup_epochs=1,
        global_batch_size=16,
        micro_batch_size=8,
        lr=2e-3,
        report_steps=2,
        augment=AugmentConfig(roll_p=1.0, eq_p=0.5),
    ),
    finetune=FinetuneConfig(
        epochs=30,
        warmup_epochs=2,
        global_batch_size=8,
        micro_batch_size=8,
        lr=2e-3,
        report_steps=5,
        layer_decay=1.0,
        ema_decay=0.9,
        augment=AugmentConfig(mixup_p=0.3, roll_p=0.5),
    ),
)

EAT = replace(
    TINY,
    model=replace(
        TINY.model,
        name="latent",
        mask_strategy="inverse_block",
        mask_block=2,
        masks_per_clip=4,
        decoder="conv",
        decoder_depth=2,
        latent=LatentConfig(
            teacher_layers=2, targets="mlp", clip_target="patches", teacher_view="same", decay=0.99, final_decay=0.999
        ),
    ),
)
"""The objective of the recipe `eat`, tiny."""

EVERYTHING = AugmentConfig(
    crop_seconds=0.32,
    roll_p=0.8,
    gain_db=6.0,
    eq_p=0.8,
    responses=("devices/",),
    response_p=0.8,
    mixstyle_p=0.8,
    freq_mask_param=8,
    time_mask_param=8,
)

RESPONSES = np.random.default_rng(0).normal(size=(5, TINY_AUDIO.n_mels)).astype(np.float32)


def make_spec(store: FeatureStore, folder: Path, kind: str = "pretrain", config: Config = TINY, **more) -> StageSpec:
    return StageSpec(name=kind, kind=kind, config=config, artifact=Folder(str(folder)), store=store, **more)


def train(spec: StageSpec) -> dict[str, Tensor]:
    trainer = Trainer.start(build_task(spec), BareSession(spec.store, spec.artifact), spec.artifact)
    trainer.run()
    return {name: value.clone() for name, value in trainer.result_model.state_dict().items()}


def passes(spec: StageSpec, session: BareSession | None = None) -> Iterator[tuple[Task, PreparedStep]]:
    """The prepared steps of a run, on the CPU."""
    task, session = build_task(spec), session or BareSession(spec.store, spec.artifact)
    order = task.order
    divided = plan_passes(task, order, session.world_size, sharded=False)
    steps = prepared_steps(task, session.groups(order, 0), divided, Transfer(torch.device("cpu")))
    return ((task, one) for one in steps)


def first_loss(spec: StageSpec) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and the metrics of the first step, whose passes add up."""
    task, prepared = next(passes(spec))
    totals = dict(zip(task.counted, torch.from_numpy(prepared.counts).float().unbind(), strict=True))
    found = [task.training_step(task.model, batch, totals) for batch in prepared.batches]
    return sum(loss for loss, _ in found), {name: sum(more[name] for _, more in found) for name in found[0][1]}


def losses(spec: StageSpec, workers: int) -> dict[int, float]:
    """The loss of every pass of a run, as a sum over its clips, by the place of its first clip, for so many workers."""
    found = {}
    for rank in range(workers):
        session = BareSession(spec.store, spec.artifact)
        session.rank, session.world_size = rank, workers
        for task, prepared in passes(spec, session):
            ones = dict.fromkeys(task.counted, torch.ones(()))
            for batch in prepared.batches:
                with torch.no_grad():
                    found[batch.key] = task.training_step(task.model, batch, ones)[0].item()
    return found


def trails(spec: StageSpec) -> dict[int, str]:
    """The trail after every step of a stage, from its order alone."""
    order, ids, total, found = spec.order(), spec.store.clips["clip_id"].to_pylist(), 0, {}
    windows = [order.window_rows(number) for number in range(order.windows)]
    for step in range(order.steps):
        first = order.first_window(step)
        start = (step - order.round_steps(first).start) * order.group_size
        for slot in range(order.slots):
            rows = windows[first + slot][start : start + order.group_size]
            names = "\n".join(ids[row] for row in rows)
            total += mix((step * order.slots + slot) * order.group_size, zlib.crc32(names.encode()))
        found[step + 1] = f"{total % 2**64:016x}"
    return found


class KilledError(Exception):
    """Simulates a sudden end of the process."""


def train_in_two(spec: StageSpec, monkeypatch: pytest.MonkeyPatch, at: int) -> dict[str, Tensor]:
    """The weights of a run that writes a checkpoint at every third step, is killed before step `at` and resumes."""
    real_take = Trainer._take

    def take(self: Trainer, steps: Iterator[PreparedStep], share: float) -> None:
        if self.progress.step == at:
            raise KilledError
        real_take(self, steps, share)
        if self.progress.step % 3 == 1:
            self._commit()
            self.committer.wait()

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_take", take)
        with pytest.raises(KilledError):
            train(spec)
    return train(spec)
