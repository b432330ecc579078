"""The training loop without Ray: learns, resumes exactly, skips bad steps, keeps to a time budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymae.datasets.rows import class_names
from raymae.features.store import FeatureStore
from raymae.storage.events import read_events
from raymae.training.batches.windows import Group
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec, labelled_rows, pretrain_sources
from raymae.training.tasks.base import TrainingError
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import EVERYTHING, RESPONSES, TINY, losses, make_spec, trails, train, train_in_two

SHORT = replace(
    TINY,
    pretrain=replace(TINY.pretrain, epochs=2.5),
    finetune=replace(TINY.finetune, epochs=7),
)
"""A dozen steps of each stage."""
GROUPS: dict[str, Any] = {"mixing_group": 4, "micro_batch_size": 4}
"""Several mixing groups a step, each a forward pass."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pretrained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory, _one_thread: None) -> StageSpec:
    """A finished pre-training."""
    spec = make_spec(store, tmp_path_factory.mktemp("pretrain"))
    run_stage(spec, BareSession(store, spec.artifact))
    return spec


def test_pretraining_lowers_the_loss(pretrained: StageSpec) -> None:
    losses = [event["metrics"]["loss"] for event in read_events(pretrained.artifact)]
    assert losses[-1] < 0.8 * losses[0]
    assert pretrained.artifact.result()["steps"] == pretrained.order().steps
    assert pretrained.artifact.exists("model.safetensors")


def test_finetuning_learns_two_tones(store: FeatureStore, pretrained: StageSpec, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path / "finetune", "finetune", encoder=pretrained.artifact)
    run_stage(spec, BareSession(store, spec.artifact))
    assert spec.artifact.result()["metrics"]["val/macro_accuracy"] > 0.9
    assert spec.artifact.read_json("classifier.json")["class_names"] == ["high", "low"]


@pytest.mark.parametrize(("kind", "model"), [("pretrain", "mae"), ("pretrain", "latent"), ("finetune", "mae")])
def test_one_worker_and_several_augment_the_same(store: FeatureStore, tmp_path: Path, kind: str, model: str) -> None:
    config = replace(
        TINY,
        model=replace(TINY.model, name=model),
        pretrain=replace(TINY.pretrain, epochs=2, augment=EVERYTHING, **GROUPS),
        finetune=replace(TINY.finetune, epochs=3, drop_path=0.3, augment=replace(EVERYTHING, mixup_p=0.8), **GROUPS),
    )
    spec = make_spec(store, tmp_path, kind, config, responses=RESPONSES)
    one = losses(spec, 1)
    assert all(losses(spec, workers) == one for workers in range(2, spec.slots + 1))
    assert len(set(one.values())) == len(one) == spec.slots * spec.order().steps


def test_each_stage_has_its_own_augmentation(store: FeatureStore, tmp_path: Path) -> None:
    short = replace(
        TINY,
        pretrain=replace(TINY.pretrain, epochs=2),
        finetune=replace(TINY.finetune, epochs=3, drop_path=0.0),
    )
    other = {
        kind: replace(short, **{kind: replace(getattr(short, kind), augment=EVERYTHING)})
        for kind in ("pretrain", "finetune")
    }
    for kind in other:
        before = losses(make_spec(store, tmp_path, kind, short), 1)
        for changed, config in other.items():
            spec = make_spec(store, tmp_path, kind, config, responses=RESPONSES if kind == changed else None)
            assert (losses(spec, 1) == before) == (kind != changed)


@pytest.mark.parametrize(("kind", "cnn"), [("pretrain", None), ("finetune", None), ("finetune", "test_resnet")])
def test_resuming_from_a_checkpoint_is_exact(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cnn: str | None
) -> None:
    undisturbed = train(make_spec(store, tmp_path / "whole", kind, SHORT, cnn=cnn))
    for at in (1, 7, 11):
        spec = make_spec(store, tmp_path / f"parts{at}", kind, SHORT, cnn=cnn)
        assert spec.order().steps > at
        resumed = train_in_two(spec, monkeypatch, at)
        assert undisturbed.keys() == resumed.keys()
        for name, value in undisturbed.items():
            assert torch.equal(value, resumed[name]), f"{name}, killed at step {at}"


def test_the_trail_depends_on_clips_and_steps(store: FeatureStore) -> None:
    def trail(groups: dict[int, list[int]]) -> int:
        return sum(group(place, rows).fingerprint(store.clip_ids) for place, rows in groups.items()) % 2**64

    def group(place: int, rows: list[int]) -> Group:
        return Group(place, np.array(rows), np.empty(0, np.float16), np.empty(0, np.int32))

    run = {0: [3, 1, 2], 3: [4, 5, 9]}
    others = [{0: [1, 3, 2], 3: [4, 5, 9]}, {0: [4, 5, 9], 3: [3, 1, 2]}, {0: [3, 1, 2]}, {0: [3, 1, 2], 3: [4, 5, 8]}]
    assert trail(dict(reversed(run.items()))) == trail(run)
    assert trail(run) not in map(trail, others)


def test_the_trail_follows_from_the_order(pretrained: StageSpec) -> None:
    events = {event["step"]: event["trail"] for event in read_events(pretrained.artifact)}
    expected = trails(pretrained)
    assert events == {step: expected[step] for step in events}
    assert pretrained.artifact.result()["trail"] == expected[pretrained.order().steps]


def test_steps_that_are_not_finite_are_skipped_then_an_error(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(store, tmp_path, config=replace(SHORT, pretrain=replace(SHORT.pretrain, max_bad_steps=3)))
    task = build_task(spec)
    real = task.training_step
    bad_until = [2]

    def step(model, batch, totals):
        loss, extra = real(model, batch, totals)
        return (loss * float("nan") if batch.key // spec.order().global_batch_size < bad_until[0] else loss), extra

    monkeypatch.setattr(task, "training_step", step)
    trainer = Trainer.start(task, BareSession(store, spec.artifact), spec.artifact)
    progress = trainer.run()
    assert progress.bad_steps == 2
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    bad_until[0] = 10**6
    with pytest.raises(TrainingError, match="3 steps in a row"):
        Trainer.start(task, BareSession(store, spec.artifact), spec.artifact).run()


@pytest.mark.parametrize("kind", ["finetune", "consistency"])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_stage_can_have_its_own_number_of_steps(store: FeatureStore, tmp_path: Path, kind: str, steps: int) -> None:
    assert make_spec(store, tmp_path, kind, steps=steps).order().steps == steps


def test_the_cnn_is_the_same_however_busy_the_machine_is(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, since nothing in its training asks a clock for more than a report."""
    idle = train(make_spec(store, tmp_path / "idle", "finetune", cnn="test_resnet", steps=12))
    real = Trainer._take

    def slow(self: Trainer, steps: Any, share: float) -> None:
        real(self, steps, share)
        self.progress.work_seconds += 100.0

    monkeypatch.setattr(Trainer, "_take", slow)
    busy = train(make_spec(store, tmp_path / "busy", "finetune", cnn="test_resnet", steps=12))
    assert all(torch.equal(value, busy[name]) for name, value in idle.items())


def test_the_cnn_can_have_its_own_learning_rate_and_crops(store: FeatureStore, tmp_path: Path) -> None:
    config = replace(TINY, evaluate=replace(TINY.evaluate, cnn_lr=3e-3, cnn_crop_seconds=0.32))
    baseline = make_spec(store, tmp_path, "finetune", config, cnn="resnet10t").classification
    assert (baseline.peak_lr, baseline.augment.crop_seconds) == (3e-3, 0.32)
    assert make_spec(store, tmp_path, "finetune", config).classification == TINY.finetune
    with pytest.raises(ValueError, match="cnn_lr"):
        replace(TINY.evaluate, cnn_lr=0.0)


def test_only_train_and_pool_are_used_for_pretraining(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    splits = store.clips["split"].to_pylist()
    used = {splits[row] for rows, _ in pretrain_sources(spec) for row in rows}
    assert used == {"train", "pool"}
    pool_only = make_spec(store, tmp_path, config=replace(TINY, pretrain=replace(TINY.pretrain, pool_only=True)))
    assert {splits[row] for rows, _ in pretrain_sources(pool_only) for row in rows} == {"pool"}


def test_only_labelled_training_clips_are_used_for_finetuning(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path, "finetune")
    rows, targets = labelled_rows(spec)
    clips = store.clips.take(rows)
    assert set(clips["split"].to_pylist()) == {"train"}
    names = class_names(store.clips)
    assert clips["scene_label"].to_pylist() == [names[label] for label in targets[rows].toarray().argmax(1)]
    assert targets.sum() == len(rows)
