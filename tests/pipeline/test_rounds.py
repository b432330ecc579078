"""Rounds of pseudo-labels in a plan, and run in one process: what each is made from, and what each may never touch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors

from raymae.config import AugmentConfig, Config, PseudoLabelConfig
from raymae.datasets.rows import Rows, class_names, rows_of
from raymae.evaluation.report import model_title
from raymae.features.store import FeatureStore
from raymae.inference.embedder import Reading
from raymae.inference.predictor import Predictor
from raymae.inference.test_time_augmentation import averaged, classify, eq_view
from raymae.models.classifier import subtract_band_mean
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.pseudo_label import run_round
from raymae.pseudo_labels.table import FILE
from raymae.storage.folder import Folder
from raymae.training.run_stage import build_task, run_stage
from raymae.training.spec import StageSpec, labelled_rows
from raymae.training.state.provenance import trained_clips
from raymae.training.worker import BareSession
from tests.support.training import TINY

SHORT = replace(
    TINY,
    pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0),
    finetune=replace(TINY.finetune, epochs=2, warmup_epochs=0),
    pseudo_label=PseudoLabelConfig(confidence_threshold=None, coverage=0.5),
)


def with_labels(**given: Any) -> Config:
    return replace(SHORT, pseudo_label=replace(SHORT.pseudo_label, **given))


def plan_of(config: Config, clips: pa.Table, target: Any = "register") -> Plan:
    return Plan(config, clips, Folder("/nowhere"), target)


def keys(plan: Plan) -> dict[str, str]:
    return {name: node.key for name, node in plan.nodes.items()}


# Plans ---------------------------------------------------------------------------------------------------------------


def test_one_round_is_named_as_ever(clips: pa.Table) -> None:
    stages = ["prepare", "pretrain", "finetune", "cnn", "pseudo_label", "student", "evaluate", "register"]
    assert list(plan_of(SHORT, clips).nodes) == stages


def test_rounds_follow_one_another_and_the_last_student_is_final(clips: pa.Table) -> None:
    one, three = plan_of(SHORT, clips), plan_of(with_labels(rounds=3), clips)
    rounds = [f"{stage}{turn}" for turn in ("", "_2", "_3") for stage in ("pseudo_label", "student")]
    assert list(three.nodes) == ["prepare", "pretrain", "finetune", "cnn", *rounds, "evaluate", "register"]
    assert three.final == "student_3"
    assert list(three.classifiers) == ["cnn", "finetune", "student", "student_2", "student_3"]
    assert model_title("student_2") == "MAE, with pseudo-labels, round 2"
    assert len(set(keys(three).values())) == len(three.nodes)
    # what came before is reused: only what follows the first student is new
    same = [name for name, key in keys(one).items() if keys(three)[name] == key]
    assert same == [name for name in one.nodes if name not in ("evaluate", "register")]
    spec = three.spec("student_2")
    assert spec.pseudo_labels == three.nodes["pseudo_label_2"].artifact
    assert (spec.encoder, spec.classifier) == (three.nodes["pretrain"].artifact, None)
    assert three.spec("student").seed() != spec.seed()


def test_a_student_may_go_on_from_the_one_before(clips: pa.Table) -> None:
    anew, on = (plan_of(with_labels(rounds=2, student_start=start), clips) for start in ("pretrained", "continued"))
    spec = on.spec("student_2")
    assert (spec.encoder, spec.classifier) == (None, on.nodes["student"].artifact)
    assert on.spec("student").encoder == on.nodes["pretrain"].artifact
    changed = [name for name, key in keys(anew).items() if keys(on)[name] != key]
    assert changed == ["student_2", "evaluate", "register"]


def test_the_job_of_pseudo_labels_ends_with_the_last_round_s(clips: pa.Table) -> None:
    names = list(plan_of(with_labels(rounds=2), clips, "pseudo_label").nodes)
    assert names == ["prepare", "pretrain", "finetune", "pseudo_label", "student", "pseudo_label_2"]


@pytest.mark.parametrize(
    "given", [{"labels": "soft"}, {"max_per_group": 1}, {"max_per_class": 5}, {"views": 2}, {"max_class_ratio": 2.0}]
)
def test_what_changes_labels_changes_what_follows(clips: pa.Table, given: dict[str, Any]) -> None:
    before, after = keys(plan_of(SHORT, clips)), keys(plan_of(with_labels(**given), clips))
    changed = [name for name, key in before.items() if after[name] != key]
    assert changed == ["pseudo_label", "student", "evaluate", "register"]


def test_the_truth_changes_the_report_alone(clips: pa.Table, tmp_path: Path) -> None:
    found = {}
    for label in ("high", "low"):
        table = tmp_path / f"{label}.csv"
        hidden = clips.take(rows_of(clips, "train", labelled=False))["clip_id"].to_pylist()
        table.write_text("filename,scene_label\n" + "".join(f"{clip},{label}\n" for clip in hidden))
        found[label] = keys(plan_of(with_labels(rounds=2, truth=str(table)), clips))
    without = keys(plan_of(with_labels(rounds=2), clips))
    for one in (without, found["low"]):
        changed = {name for name, key in found["high"].items() if one[name] != key}
        assert changed == {"pseudo_label", "pseudo_label_2"}
    (tmp_path / "high.csv").write_text("filename,scene_label\nnobody.wav,high\n")
    with pytest.raises(ValueError, match=r"'nobody\.wav': should name a clip of this run"):
        keys(plan_of(with_labels(truth=str(tmp_path / "high.csv")), clips))


def test_views_are_of_no_use_to_a_model_that_centres() -> None:
    with pytest.raises(ValueError, match=r"pseudo_label\.views = 2 has no effect with finetune\.subtract_band_mean"):
        replace(with_labels(views=2), finetune=replace(SHORT.finetune, subtract_band_mean=True))


# In one process ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, dict[str, Any]]:
    """A storage with a plan of two rounds of soft labels run to its last student, and the rounds' results."""
    torch.set_num_threads(1)
    root = Folder(str(tmp_path_factory.mktemp("rounds")))
    truth = Path(root.path()) / "truth.csv"
    tones = {clip: "high" if int(clip[4:7]) % 2 else "low" for clip in store.clip_ids.to_pylist()}
    truth.parent.mkdir(exist_ok=True)
    truth.write_text("filename,scene_label\n" + "".join(f"{clip},{label}\n" for clip, label in tones.items()))
    given = {"rounds": 2, "labels": "soft", "views": 1, "student_start": "continued", "truth": str(truth)}
    plan = Plan(with_labels(**given), store.clips, root, "register")
    return root, run_bare(plan, store)


def run_bare(plan: Plan, store: FeatureStore) -> dict[str, Any]:
    """Run what labels and trains in a plan in this process; the results of its rounds."""
    object.__setattr__(plan, "store", store)
    found = {}
    for name, node in plan.nodes.items():
        if node.stage == "pseudo_label":
            found[name] = run_round(plan, name, classifying(plan), embedding(plan))
            node.artifact.finish(found[name])
        elif node.stage in ("pretrain", "finetune", "student"):
            run_stage(replace(plan.spec(name), store=store), BareSession(store, node.artifact))
    return found


def classifying(plan: Plan) -> Any:
    return lambda rows, teacher: classify(plan.store, rows, teacher, plan.config.pseudo_label.views)


def embedding(plan: Plan) -> Any:
    def embed(rows: Rows, reading: Reading) -> NDArray[np.float32]:
        return reading.embedder("cpu").clips(*plan.store.read(rows), reading.pool)

    return embed


def table_of(plan: Plan, name: str) -> pa.Table:
    with plan.nodes[name].artifact.open(FILE) as file:
        return pq.read_table(file)


def test_rounds_run_and_say_where_each_label_is_from(
    trained: tuple[Folder, dict[str, Any]], store: FeatureStore
) -> None:
    root, found = trained
    given = {"rounds": 2, "labels": "soft", "views": 1, "student_start": "continued"}
    truth = str(Path(root.path()) / "truth.csv")
    plan = Plan(with_labels(**given, truth=truth), store.clips, root, "register")
    assert plan.to_do == ["prepare", "cnn", "evaluate", "register"]  # what ran is found again
    tables = {name: table_of(plan, name) for name in ("pseudo_label", "pseudo_label_2")}
    free = set(store.clips.take(rows_of(store.clips, "train", labelled=False))["clip_id"].to_pylist())
    teachers = {"pseudo_label": "finetune", "pseudo_label_2": "student"}
    for turn, (name, table) in enumerate(tables.items(), start=1):
        assert set(table["clip_id"].to_pylist()) == free  # never a clip of pool, val or test
        assert set(table["round"].to_pylist()) == {turn}
        assert set(table["teacher"].to_pylist()) == {plan.nodes[teachers[name]].artifact.url}
        report = plan.nodes[name].artifact.read_json("report.json")
        assert report["round"] == turn
        assert report["truth"]["clips"] == len(free)
        assert report["calibrated_on"] == "val"
        assert {"classes.png", "reliability.png", "accuracy.png"} <= set(
            (plan.nodes[name].artifact / "figures").names()
        )
    assert found["pseudo_label"]["agreement"] is None
    assert found["pseudo_label_2"]["agreement"]["clips"] == len(free)
    # the second student goes on from the first, head and all
    spec = replace(plan.spec("student_2"), store=store)
    first = load_tensors(plan.nodes["student"].artifact.read_bytes("model.safetensors"))
    assert all(torch.equal(value, first[key]) for key, value in build_task(spec).model.state_dict().items())


def test_soft_labels_are_the_targets(trained: tuple[Folder, dict[str, Any]], store: FeatureStore) -> None:
    root, _ = trained
    given = {"rounds": 2, "labels": "soft", "views": 1, "student_start": "continued"}
    plan = Plan(with_labels(**given, truth=str(Path(root.path()) / "truth.csv")), store.clips, root, "register")
    spec = replace(plan.spec("student"), store=store)
    rows, targets = labelled_rows(spec)
    dense = targets.toarray()
    np.testing.assert_allclose(dense[rows].sum(1), 1, atol=1e-5)
    assert not dense[np.setdiff1d(np.arange(len(store)), rows)].any()
    accepted = {row["clip_id"]: row for row in table_of(plan, "pseudo_label").to_pylist() if row["accepted"]}
    ids = store.clip_ids.to_pylist()
    guessed = [row for row in rows if ids[row] in accepted]
    assert len(guessed) == len(accepted) > 0
    for row in guessed:
        np.testing.assert_allclose(dense[row], accepted[ids[row]]["probabilities"], atol=1e-6)
    given_ = np.setdiff1d(rows, guessed)
    np.testing.assert_array_equal(given_, rows_of(store.clips, "train", labelled=True))
    assert set(np.unique(dense[given_])) == {0, 1}
    # other weights of the same classes are other training data
    other = trained_clips(spec)["fingerprint"]
    assert other != trained_clips(replace(spec, pseudo_labels=plan.nodes["pseudo_label_2"].artifact))["fingerprint"]


def table_for(store: FeatureStore, folder: Path, rows: Rows, **more: Any) -> Folder:
    """A table of pseudo-labels that accepts some rows of the store."""
    ids = store.clips["clip_id"].take(rows)
    columns = {"clip_id": ids, "pseudo_label": ["high"] * len(rows), "accepted": [True] * len(rows)} | more
    table = pa.table(columns).replace_schema_metadata({"class_names": '["low", "high"]'})
    Folder(str(folder)).write_table(FILE, table)
    return Folder(str(folder))


@pytest.mark.parametrize("split", ["pool", "val", "test", "train"])
def test_a_label_of_another_clip_stops_the_student(store: FeatureStore, tmp_path: Path, split: str) -> None:
    rows = rows_of(store.clips, split, labelled=None if split == "pool" else True)[:2]
    folder = table_for(store, tmp_path, rows)
    spec = StageSpec(name="student", kind="finetune", config=SHORT, artifact=folder, store=store, pseudo_labels=folder)
    with pytest.raises(AssertionError, match="is not an unlabelled training clip"):
        labelled_rows(spec)


def test_soft_labels_of_other_classes_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    rows = rows_of(store.clips, "train", labelled=False)[:2]
    folder = table_for(store, tmp_path, rows, probabilities=[[0.5, 0.5]] * 2)
    spec = StageSpec(name="student", kind="finetune", config=SHORT, artifact=folder, store=store, pseudo_labels=folder)
    assert class_names(store.clips) == ["high", "low"]
    with pytest.raises(ValueError, match="probabilities of low, high; the labels are high, low"):
        labelled_rows(spec)


def test_without_val_the_teacher_is_calibrated_by_a_probe(
    trained: tuple[Folder, dict[str, Any]], store: FeatureStore
) -> None:
    root, _ = trained
    plan = Plan(with_labels(labels="soft", views=1), store.clips, root, "register")
    blind = FeatureStore(store.folder, store.shards)
    split = pa.array(["test_b" if one == "val" else one for one in store.clips["split"].to_pylist()])
    place = store.clips.schema.get_field_index("split")
    object.__setattr__(blind, "clips", store.clips.set_column(place, "split", split))
    object.__setattr__(plan, "store", blind)
    found = run_round(plan, "pseudo_label", classifying(plan), embedding(plan))
    assert found["calibrated_on"] == "cross-fitted"
    assert found["calibration"]["clips"] == len(rows_of(store.clips, "train", labelled=True))
    text = plan.nodes["pseudo_label"].artifact.read_bytes("report.md").decode()
    assert "Split val has no labelled clip" in text
    assert "log loss and calibration error are unknown" in text


# Views ---------------------------------------------------------------------------------------------------------------


def test_views_depend_on_the_clip_alone(trained: tuple[Folder, dict[str, Any]], store: FeatureStore) -> None:
    root, _ = trained
    plan = Plan(with_labels(rounds=2, labels="soft", views=1), store.clips, root, "register")
    predictor = Predictor(plan.nodes["finetune"].artifact)
    rows = np.arange(6)
    log_mel, frames = store.read(rows)
    ids = store.clip_ids.take(rows).to_pylist()
    together = averaged(predictor, log_mel, frames, ids, 3)
    alone = [averaged(predictor, log_mel[[n]], frames[[n]], ids[n : n + 1], 3)[0] for n in (4, 1)]
    np.testing.assert_allclose(together[[4, 1]], alone, atol=1e-5)
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        averaged(predictor, log_mel, frames, ids, 0), predictor.probabilities(log_mel, frames)
    )
    # the mean of the clip, its three colours and the centred one
    x, valid = torch.from_numpy(log_mel).float(), torch.from_numpy(frames).long()
    shown = [eq_view(x, valid, ids, AugmentConfig(), plan.config.audio, view) for view in range(3)]
    assert not torch.allclose(shown[0], shown[1])
    one_by_one = [predictor.probabilities(view.numpy(), frames) for view in (x, subtract_band_mean(x, valid), *shown)]
    np.testing.assert_allclose(together, np.mean(one_by_one, axis=0), atol=1e-5)
