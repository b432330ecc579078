"""Clips of several classes, from the table to the report: two tones that come together or alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile as sf
import torch
from torch.nn import functional

from raymae.config import AugmentConfig, Config, DataConfig, FinetuneConfig
from raymae.config.stages import Target
from raymae.datasets.checks import check_labels
from raymae.datasets.rows import Rows, class_names, rows_of
from raymae.evaluation.scores import evaluation
from raymae.features.store import FeatureStore
from raymae.inference.classifier import class_probabilities
from raymae.inference.predictor import PRESENT, Predictor
from raymae.pipeline.evaluate import evaluate, predictions_table
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import run_plan
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec, labelled_rows
from raymae.training.tasks.finetune import multi_loss
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY, make_spec

TONES = {"low": 300, "high": 1500}
TEXTS = {(): "quiet", ("low",): "low", ("high",): "high", ("low", "high"): "high; low"}
NAMES = ["high", "low", "quiet"]
MULTI = replace(TINY, finetune=replace(TINY.finetune, labels="multi", augment=AugmentConfig(mixup_p=0.3)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """120 recordings of noise with a low tone, a high tone, both or neither; the splits of `write_clips`."""
    folder = tmp_path_factory.mktemp("tones")
    table = write_clips(folder, 120).to_pylist()
    mixtures = list(TEXTS.items())
    for index, row in enumerate(table):
        tones, text = mixtures[(index // 10 + index) % 4]
        rng = np.random.default_rng(index)
        time = np.arange(5120) / 8000
        wave = 0.02 * rng.normal(size=len(time))
        for name in tones:
            wave += rng.uniform(0.05, 0.3) * np.sin(2 * np.pi * TONES[name] * rng.uniform(0.9, 1.1) * time)
        sf.write(row["path"], wave, 8000, subtype="PCM_16")
        row["scene_label"] = row["scene_label"] and text
    return pa.Table.from_pylist(table, write_clips(folder / "again", 1).schema)


@pytest.fixture(scope="module")
def store(clips: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("store"), clips)


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> StageSpec:
    """A classifier fine-tuned from the start on the labelled clips."""
    torch.set_num_threads(1)
    spec = make_spec(store, tmp_path_factory.mktemp("finetune"), "finetune", MULTI)
    run_stage(spec, BareSession(store, spec.artifact))
    return spec


def held_out(store: FeatureStore) -> Rows:
    return np.concatenate([rows_of(store.clips, "val"), rows_of(store.clips, "test")])


# Targets and loss ----------------------------------------------------------------------------------------------------


def test_targets_hold_every_class_of_the_training_clips_alone(store: FeatureStore, tmp_path: Path) -> None:
    rows, targets = labelled_rows(make_spec(store, tmp_path, "finetune", MULTI))
    assert class_names(store.clips, "multi") == NAMES
    assert targets.shape == (len(store), 3)
    texts, splits = store.clips["scene_label"].to_pylist(), store.clips["split"].to_pylist()
    for row, target in enumerate(targets.toarray().astype(bool)):
        named = {name for name, there in zip(NAMES, target, strict=True) if there}
        used = texts[row] is not None and splits[row] == "train"
        assert named == (set(texts[row].split("; ")) if used else set())
        assert (row in rows) == used


def test_each_class_is_a_question_of_its_own() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [0.3, 0.7, 0]])
    probability = logits.sigmoid()
    expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean(1)
    torch.testing.assert_close(multi_loss(logits, target, 0.0)[0], expected)
    smooth = functional.binary_cross_entropy(probability, target * 0.8 + 0.1, reduction="none").mean(1)
    torch.testing.assert_close(multi_loss(logits, target, 0.2)[0], smooth)


def test_precision_at_1_asks_for_any_of_the_classes() -> None:
    target = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0.3, 0.7, 0]])
    surest = torch.tensor([2, 1, 0])
    assert multi_loss(functional.one_hot(surest, 3).float(), target, 0.0)[1].tolist() == [1, 0, 1]


# Learning and predicting ---------------------------------------------------------------------------------------------


def test_two_attributes_are_learned_at_once(trained: StageSpec) -> None:
    assert trained.artifact.result()["metrics"]["val/mAP"] > 0.95
    events = read_events(trained.artifact)
    losses = [event["metrics"]["loss"] for event in events]
    assert np.mean(losses[-8:]) < 0.75 * losses[0]
    assert {"val/mAP", "train_precision_at_1"} <= events[-1]["metrics"].keys()
    assert "val/macro_accuracy" not in events[-1]["metrics"]


def test_probes_of_one_class_leave_them_alone(store: FeatureStore, tmp_path: Path) -> None:
    found = {}
    for name, config in {"one": TINY, "several": MULTI}.items():
        short = replace(config, pretrain=replace(config.pretrain, epochs=1, warmup_epochs=0))
        spec = make_spec(store, tmp_path / name, config=short)
        run_stage(spec, BareSession(store, spec.artifact))
        found[name] = {metric for metric in spec.artifact.result()["metrics"] if metric.startswith("probe/")}
    assert found["several"] == {"probe/effective_rank"} < found["one"]


def test_a_cnn_learns_them_too(store: FeatureStore, tmp_path: Path) -> None:
    finetune = replace(MULTI.finetune, epochs=15)
    spec = make_spec(store, tmp_path, "finetune", replace(MULTI, finetune=finetune), cnn="test_resnet")
    run_stage(spec, BareSession(store, spec.artifact))
    assert spec.artifact.result()["metrics"]["val/mAP"] > 0.8


def test_the_folder_knows_that_clips_have_several_classes(trained: StageSpec, store: FeatureStore) -> None:
    predictor = Predictor(trained.artifact, threads=1)
    log_mel, frames = store.read(held_out(store)[:8])
    found = predictor.probabilities(log_mel, frames)
    with torch.inference_mode():
        logits = predictor.classifier.model(torch.from_numpy(log_mel).float(), torch.from_numpy(frames).long())
    np.testing.assert_allclose(found, logits.sigmoid().numpy(), atol=1e-6)
    assert not np.allclose(found.sum(1), 1, atol=0.05)


def test_views_average_sigmoids(trained: StageSpec, store: FeatureStore) -> None:
    one = Predictor(trained.artifact, threads=1).classifier
    log_mel, frames = store.read(held_out(store)[:4])
    config = replace(one.finetune, views=2, augment=AugmentConfig(crop_seconds=0.32))
    found = class_probabilities(one.model, log_mel, frames, config, one.audio, torch.device("cpu"))
    crop = one.audio.frames(round(0.32 * 8000))
    with torch.inference_mode():
        parts = [torch.from_numpy(log_mel[:, start : start + crop]).float() for start in (0, log_mel.shape[1] - crop)]
        expected = torch.stack([one.model(part).sigmoid() for part in parts]).mean(0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_row_names_the_classes_that_are_there(trained: StageSpec, clips: pa.Table) -> None:
    predictor = Predictor(trained.artifact, threads=1)
    right, several = [], 0
    for clip in clips.filter(pa.compute.starts_with(clips["split"], "test")).to_pylist():
        row = predictor.row(clip["path"])
        assert list(row) == ["path", "scene_label", "confidence", "error", *(f"p_{name}" for name in NAMES)]
        named, values = row["scene_label"].split(";"), {name: row[f"p_{name}"] for name in NAMES}
        present = [name for name in NAMES if values[name] >= PRESENT]
        assert set(named) == set(present or [max(NAMES, key=values.__getitem__)])
        assert [values[name] for name in named] == sorted((values[name] for name in named), reverse=True)
        assert row["confidence"] == values[named[0]] == max(values.values())
        several += len(named) > 1
        right.append(set(named) == set(clip["scene_label"].split("; ")))
    assert several
    assert np.mean(right) > 0.8


def test_a_row_names_the_surest_where_none_is_sure(trained: StageSpec, clips: pa.Table) -> None:
    predictor = Predictor(trained.artifact, threads=1)
    torch.nn.init.zeros_(predictor.classifier.model.head.weight)
    predictor.classifier.model.head.bias.data = torch.tensor([-2.0, -1.0, -3.0])
    row = predictor.row(clips["path"][0].as_py())
    assert row["scene_label"] == "low"
    assert row["confidence"] == pytest.approx(torch.tensor(-1.0).sigmoid().item(), abs=1e-6)


def test_predictions_are_evaluated(trained: StageSpec, store: FeatureStore) -> None:
    rows = held_out(store)
    predictor = Predictor(trained.artifact, threads=1)
    found = evaluation(
        predictions_table(store.clips.take(rows), predictor.probabilities(*store.read(rows))), NAMES, "multi"
    )
    assert list(found) == ["val", "test_a"]
    assert found["val"]["mAP"] == pytest.approx(trained.artifact.result()["metrics"]["val/mAP"], abs=1e-4)
    assert set(found["test_a"]["mAP_by_device"]) == {"a", "b"}


def test_every_model_and_baseline_is_evaluated(clips: pa.Table, tmp_path: Path) -> None:
    short = {"pretrain": replace(MULTI.pretrain, epochs=2), "finetune": replace(MULTI.finetune, epochs=18)}
    config = replace(MULTI, **short, compute=replace(MULTI.compute, torch_threads=1))
    whole = plan(config, clips, tmp_path, "evaluate")
    shutil.copytree(make_store(tmp_path, clips).folder.path(), whole.nodes["prepare"].artifact.path())
    for name in ("pretrain", "finetune", "cnn"):
        spec = whole.spec(name)
        run_stage(spec, BareSession(whole.store, spec.artifact))
    result = evaluate(whole, InProcess(whole))
    assert list(result["metrics"]) == ["svm", "svm_robust", "cnn", "finetune"]
    for model in ("svm", "svm_robust", "finetune"):
        assert result["metrics"][model]["test_a"]["mAP"] > 0.9
    assert result["metrics"]["svm"]["val"]["log_loss"] is None
    assert result["metrics"]["finetune"]["val"]["log_loss"] < np.log(2)
    artifact = whole.nodes["evaluate"].artifact
    assert b"\n## mAP by split\n" in artifact.read_bytes("report.md")
    drawn = ["average_precision.png", "map_by_city.png", "map_by_device.png", "scores.png"]
    drawn += ["reliability_0_val.png", "reliability_1_test_a.png", "pretrain_reconstruction.png"]
    drawn += [f"{name}_learning_curves.png" for name in ("pretrain", "finetune", "cnn")]
    assert (artifact / "figures").names() == sorted(drawn)
    assert result["made"]["clips"]["val"]["labelled"] == result["metrics"]["svm"]["val"]["clips"]
    assert result["verdict"]["model"] == "finetune"
    read = result["embeddings"]
    assert list(read["targets"]) == ["device"]  # one city, and scenes of several classes
    assert set(read["scores"]) >= {"log-mel statistics", "random weights", "pre-trained", "fine-tuned"}


# The plan and the table ----------------------------------------------------------------------------------------------


def plan(config: Config, clips: pa.Table, folder: Path, target: Target) -> Plan:
    return Plan(config, clips, Folder(str(folder)), target)


def test_the_plan_goes_from_the_teacher_to_the_registry(clips: pa.Table, tmp_path: Path) -> None:
    stages = ["prepare", "pretrain", "finetune", "cnn", "evaluate", "register"]
    for target, expected in (("register", stages), ("evaluate", stages[:-1]), ("finetune", stages[:3])):
        assert plan(MULTI, clips, tmp_path, target).names == expected
    assert plan(MULTI, clips, tmp_path, "register").final == "finetune"
    assert plan(TINY, clips, tmp_path, "register").final == "student"


def test_both_ways_have_keys_of_their_own_from_finetuning_on(clips: pa.Table, tmp_path: Path) -> None:
    single, multi = (plan(config, clips, tmp_path, "register").nodes for config in (TINY, MULTI))
    same = {name for name in multi if multi[name].key == single[name].key}
    assert same == {"prepare", "pretrain"}


def test_pseudo_labels_are_refused_with_a_way_out(clips: pa.Table, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finetune\.labels = multi: .*jobs/pipeline\.py"):
        plan(MULTI, clips, tmp_path, "pseudo_label")


def test_a_dry_run_shows_the_plan_of_a_table(
    clips: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(clips["path"][0].as_py()).parent
    data = DataConfig(dataset="table", tables=(str(write_table(folder, clips)),))
    config = replace(MULTI, data=data, dry_run=True)
    storage = Folder(str(tmp_path))
    found = run_plan(config, "register", storage)["plan"]
    assert list(found) == ["prepare", "pretrain", "finetune", "cnn", "evaluate", "register"]
    shown = capsys.readouterr().out
    assert "labelled for training: high 12, low 12, quiet 6" in shown
    assert "no pseudo-labels and no student" in shown
    with pytest.raises(ValueError, match="pseudo-labels are for single-label clips"):
        run_plan(config, "pseudo_label", storage)
    with pytest.raises(ValueError, match=r"should be one class; --finetune\.labels multi"):
        run_plan(replace(config, finetune=TINY.finetune), "register", storage)


def labelled(*texts: str | None, split: str = "train") -> list[dict[str, object]]:
    return [
        {"clip_id": f"{split}{row}", "scene_label": text, "split": split, "source": "meta", "row": row + 2}
        for row, text in enumerate(texts)
    ]


def table(*parts: list[dict[str, object]]) -> pa.Table:
    names = ("clip_id", "scene_label", "split", "source")
    schema = pa.schema([*((name, pa.string()) for name in names), ("row", pa.int64())])
    return pa.Table.from_pylist([row for part in parts for row in part], schema)


@pytest.mark.parametrize(("text", "row"), [*product(["a;", ";", "a;;b", " ; a", "  "], [2, 3])])
def test_an_empty_part_is_named_by_table_and_row(text: str, row: int) -> None:
    texts = ["a;b"] * (row - 2) + [text, None, "b"]
    with pytest.raises(ValueError, match=rf"scene_label, meta row {row}: '{text}': should have a class on either side"):
        check_labels(table(labelled(*texts)), "multi")


def test_several_classes_are_no_class_of_that_name() -> None:
    rows = table(labelled("a", "a;b", "c"))
    check_labels(rows, "multi")
    with pytest.raises(ValueError, match=r"meta row 3: 'a;b': should be one class; --finetune\.labels multi"):
        check_labels(rows, "single")


def test_a_class_that_training_never_saw_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'c' in 2 held-out clips \(first meta row 3, val1, split val\).* there: a, b"
    ):
        check_labels(table(labelled("a;b", "a"), labelled("b", "a;c", " c ", split="val")), "multi")


def test_one_class_is_no_choice() -> None:
    with pytest.raises(ValueError, match=r"'a' is the only class .* need a class of their own"):
        check_labels(table(labelled("a", "a", None)), "multi")


def test_other_values_of_the_setting_are_refused() -> None:
    with pytest.raises(ValueError, match=r"finetune\.labels = 'several' must be one of single, multi"):
        FinetuneConfig(labels="several")  # type: ignore[arg-type]
