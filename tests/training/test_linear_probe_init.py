"""The initial head of fine-tuning: the probe's predictions, not set again on resume, every class kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from raymae.config import AugmentConfig, Config
from raymae.evaluation.probes import STRENGTH, make_probe
from raymae.features.store import FeatureStore
from raymae.models import AudioClassifier, build_classifier
from raymae.storage.folder import Folder
from raymae.training.run_stage import build_task
from raymae.training.spec import StageSpec, labelled_rows
from raymae.training.tasks.linear_probe_init import embed, embed_copies, other_devices, start_head
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY

LOGISTIC = replace(TINY, finetune=replace(TINY.finetune, head_init="logistic", pool="row_stats"))


def make_spec(store: FeatureStore, folder: Path, config: Config = LOGISTIC) -> StageSpec:
    return StageSpec(name="finetune", kind="finetune", config=config, artifact=Folder(str(folder)), store=store)


def make_model(config: Config, classes: int) -> AudioClassifier:
    torch.manual_seed(0)
    model = build_classifier(config.audio, config.model, config.finetune, classes)
    assert isinstance(model, AudioClassifier)
    return model


def rows_and_labels(spec: StageSpec) -> tuple[np.ndarray, np.ndarray]:
    rows, targets = labelled_rows(spec)
    return rows, targets[rows].toarray().argmax(1)


def test_the_head_predicts_as_the_probe(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    rows, labels = rows_and_labels(spec)
    model = make_model(LOGISTIC, 2)
    start_head(model, spec, rows, np.eye(2)[labels], np.ones(len(rows)), 5)
    x = embed(model, spec, rows)
    with torch.no_grad():
        logits = model.head(torch.from_numpy(x))
    assert (logits.argmax(1).numpy() == labels).mean() > 0.8  # even with a random encoder
    again = make_model(LOGISTIC, 2)
    start_head(again, spec, rows, np.eye(2)[labels], np.ones(len(rows)), 5)
    torch.testing.assert_close(again.head.weight, model.head.weight, rtol=0, atol=0)


def test_what_random_eq_changes_counts_less(store: FeatureStore, tmp_path: Path) -> None:
    """Inputs are divided by their deviation over the copies, at which the probe's regression is fitted."""
    augment = replace(LOGISTIC.finetune.augment, eq_p=0.3, eq_nats=2.0)
    config = replace(LOGISTIC, finetune=replace(LOGISTIC.finetune, augment=augment))
    spec = make_spec(store, tmp_path, config)
    rows, labels = rows_and_labels(spec)
    model, plain = make_model(config, 2), make_model(LOGISTIC, 2)
    copies = embed_copies(model, spec, rows, 5)
    assert copies is not None
    assert embed_copies(plain, make_spec(store, tmp_path), rows, 5) is None
    x = embed(model, spec, rows)
    assert np.abs(copies - x).max() > 0.1  # with eq_p = 0.3 too, every copy has a response
    assert (np.abs(copies - x).max(1) > 0).all()
    start_head(model, spec, rows, np.eye(2)[labels], np.ones(len(rows)), 5)
    start_head(plain, make_spec(store, tmp_path), rows, np.eye(2)[labels], np.ones(len(rows)), 5)
    scale = np.where(copies.std(0) > 1e-6, copies.std(0), 1)
    z = (x - copies.mean(0)) / scale
    regression = LogisticRegression(C=STRENGTH, max_iter=1000).fit(z, labels)
    with torch.no_grad():
        found, other = (one.head(torch.from_numpy(x)).softmax(1).numpy() for one in (model, plain))
    np.testing.assert_allclose(found, regression.predict_proba(z), atol=1e-3)
    assert np.abs(found - other).max() > 0.01


def test_every_copy_has_another_device() -> None:
    devices = other_devices(AugmentConfig(eq_p=0.3, responses=("room.wav",), response_p=0.2, mixstyle_p=1.0))
    assert devices is not None
    assert (devices.eq_p, devices.response_share, devices.mixstyle_p) == (1, 1, 0)
    assert other_devices(AugmentConfig(mixstyle_p=1.0)) is None
    assert other_devices(AugmentConfig(responses=("room.wav",), response_p=0.0)) is None


def test_more_than_two_classes_have_the_probe_s_probabilities(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(store, tmp_path)
    rows, _ = rows_and_labels(spec)
    labels = np.array([0, 3, 4])[np.arange(len(rows)) % 3]  # classes 1 and 2 have no clip
    model = make_model(LOGISTIC, 5)
    x = np.random.default_rng(0).normal(size=(len(rows), model.head.in_features)).astype(np.float32)
    x[:, :5] += 2 * np.eye(5, dtype=np.float32)[labels]
    monkeypatch.setattr("raymae.training.tasks.linear_probe_init.embed", lambda *arguments: x)
    start_head(model, spec, rows, np.eye(5)[labels], np.ones(len(rows)), 0)
    probe = make_probe("linear", len(x)).fit(x, labels)
    with torch.no_grad():
        logits = model.head(torch.from_numpy(x))
    np.testing.assert_allclose(logits[:, [0, 3, 4]].softmax(1), probe.predict_proba(x), atol=1e-4)
    assert not model.head.weight[[1, 2]].any()
    assert torch.isin(logits.argmax(1), torch.tensor([0, 3, 4])).all()


def test_soft_targets_are_weighted_by_their_shares(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(store, tmp_path)
    rows, _ = rows_and_labels(spec)
    twice = np.concatenate([rows, rows])
    labels, seconds = np.arange(len(rows)) % 3, (np.arange(len(rows)) // 3) % 3
    once = np.random.default_rng(0).normal(size=(len(rows), make_model(LOGISTIC, 3).head.in_features))
    monkeypatch.setattr(
        "raymae.training.tasks.linear_probe_init.embed",
        lambda *arguments: np.concatenate([once, once]).astype(np.float32),
    )
    shared, apart = make_model(LOGISTIC, 3), make_model(LOGISTIC, 3)
    halves = (np.eye(3)[labels] + np.eye(3)[seconds]) / 2
    start_head(shared, spec, twice, np.concatenate([halves, halves]), np.ones(len(twice)), 0)
    one_hot = np.concatenate([np.eye(3)[labels], np.eye(3)[seconds]])
    start_head(apart, spec, twice, one_hot, np.ones(len(twice)), 0)
    torch.testing.assert_close(shared.head.weight, apart.head.weight, rtol=1e-2, atol=1e-4)
    assert shared.head.weight.abs().max() > 1e-3


def test_a_run_sets_the_head_once(store: FeatureStore, tmp_path: Path) -> None:
    spec = make_spec(store, tmp_path)
    session = BareSession(store, spec.artifact)
    first = Trainer.start(build_task(spec), session, spec.artifact)
    assert first.model.head.weight.abs().max() > 1e-3
    assert first.ema is not None
    torch.testing.assert_close(first.ema.model.head.weight, first.model.head.weight)
    with torch.no_grad():
        first.model.head.weight.fill_(7.0)
    first._commit()
    first.committer.wait()
    assert (Trainer.start(build_task(spec), session, spec.artifact).model.head.weight == 7).all()


def test_multi_label_clips_have_a_probe_for_each_class(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(LOGISTIC, finetune=replace(LOGISTIC.finetune, labels="multi"))
    spec = make_spec(store, tmp_path, config)
    rows, _ = rows_and_labels(spec)
    rng = np.random.default_rng(0)
    targets = (rng.random((len(rows), 4)) < 0.5).astype(np.float32)
    targets[:, 2], targets[:, 3] = 0, 1  # a class that no clip has, and one that all have
    model = make_model(config, 4)
    before = model.head.weight.detach().clone()
    x = rng.normal(size=(len(rows), model.head.in_features)).astype(np.float32)
    x[:, :4] += 2 * targets
    monkeypatch.setattr("raymae.training.tasks.linear_probe_init.embed", lambda *arguments: x)
    start_head(model, spec, rows, targets, np.ones(len(rows)), 0)
    with torch.no_grad():
        found = model.head(torch.from_numpy(x)).sigmoid().numpy()
    for column in (0, 1):
        probe = make_probe("linear", len(x)).fit(x, targets[:, column])
        np.testing.assert_allclose(found[:, column], probe.predict_proba(x)[:, 1], atol=1e-4)
    torch.testing.assert_close(model.head.weight[2:], before[2:], rtol=0, atol=0)
