"""Pre-training with a teacher's targets as EAT does it: it learns, resumes to the bit, and stops on collapse."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymae.features.store import FeatureStore
from raymae.storage.commits import complete
from raymae.storage.events import read_events
from raymae.training.run_stage import build_task, run_stage
from raymae.training.state.checkpoint import load_commit
from raymae.training.tasks.base import TrainingError
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import EAT, EVERYTHING, RESPONSES, losses, make_spec, train, train_in_two

SHORT = replace(EAT, pretrain=replace(EAT.pretrain, epochs=4))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_loss_falls_and_the_teacher_follows(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path, config=EAT)
    run_stage(spec, BareSession(store, spec.artifact))
    metrics = [event["metrics"] for event in read_events(spec.artifact)]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    assert all(one["target_variance"] > 0.1 for one in metrics)
    assert spec.artifact.exists("figures/reconstruction.png")


def test_resuming_is_exact_and_the_teacher_is_in_the_checkpoint(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(make_spec(store, tmp_path / "whole", config=SHORT))
    spec = make_spec(store, tmp_path / "parts", config=SHORT)
    resumed = train_in_two(spec, monkeypatch, at=6)
    assert undisturbed.keys() == resumed.keys()
    for name, value in undisturbed.items():
        assert torch.equal(value, resumed[name]), name
    teachers = [name for name in undisturbed if name.startswith("teacher.")]
    kept = load_commit(spec.artifact, complete(spec.artifact)[-1])[0]["model"]
    assert set(teachers) <= set(kept)
    assert all(not torch.equal(undisturbed[name], undisturbed[f"encoder{name[7:]}"]) for name in teachers)


def test_several_workers_draw_the_same_masks(store: FeatureStore, tmp_path: Path) -> None:
    groups = {"mixing_group": 4, "micro_batch_size": 4}
    pretrain = replace(EAT.pretrain, epochs=2, augment=EVERYTHING, **groups)
    spec = make_spec(store, tmp_path, config=replace(EAT, pretrain=pretrain), responses=RESPONSES)
    one = losses(spec, 1)
    assert losses(spec, 2) == one
    assert len(set(one.values())) == len(one) == spec.slots * spec.order().steps


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_collapsed_teacher_stops_the_run(store: FeatureStore, tmp_path: Path, value: float) -> None:
    slow = replace(SHORT.model.latent, decay=0.99999, final_decay=0.99999)  # else it recovers from zeros
    spec = make_spec(store, tmp_path, config=replace(SHORT, model=replace(SHORT.model, latent=slow)))
    task = build_task(spec)
    with torch.no_grad():
        for block in task.model.teacher.blocks:
            block.mlp.fc2.weight.fill_(value)
    trainer = Trainer.start(task, BareSession(store, spec.artifact), spec.artifact)
    with pytest.raises(
        TrainingError, match=r"targets have collapsed.*target_variance.*pretrain\.lr.*model\.latent\.decay"
    ):
        trainer.run()
