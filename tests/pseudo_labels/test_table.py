"""The table of pseudo-labels with its provenance, the scores of a round, and true labels that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from numpy.typing import NDArray

from raymae.config import PseudoLabelConfig
from raymae.evaluation.report import write_round
from raymae.inference.classifier import check_teacher
from raymae.pseudo_labels.acceptance import decide
from raymae.pseudo_labels.calibration import Calibration, apply_temperature, calibrated_on_val, uncalibrated
from raymae.pseudo_labels.table import Round, against_truth, agreement, pseudo_label, summary
from raymae.pseudo_labels.truth import read_truth
from raymae.storage.folder import Folder
from tests.support.clip_tables import clip_table
from tests.support.pseudo_labels import (
    FREEMATCH,
    coverage,
    flexmatch,
    guesses,
    in_groups,
    probabilities,
    shares,
    teacher,
    threshold,
)
from tests.support.pseudo_labels import names as group_names

NAMES = ["airport", "bus", "park", "tram"]
COLUMNS = ["clip_id", "pseudo_label", "raw_confidence", "confidence", "round", "teacher", "accepted", "reason"]
PLAIN = uncalibrated("a test")


def unlabelled(count: int) -> pa.Table:
    return clip_table([{"group": group} for group in in_groups(count)])


def label(
    values: NDArray[np.float32], config: PseudoLabelConfig, calibration: Calibration = PLAIN, number: int = 1
) -> Round:
    return pseudo_label(unlabelled(len(values)), values, calibration, NAMES, config, "artifacts/finetune/abc", number)


@pytest.mark.parametrize("config", [threshold(0.6), coverage(0.25), flexmatch(0.7), FREEMATCH])
def test_every_unlabelled_clip_has_a_row_with_its_provenance(config: PseudoLabelConfig) -> None:
    values = guesses(200)
    found = label(values, config, replace(PLAIN, temperature=2.0), number=3).table
    assert found.column_names == COLUMNS
    assert found.schema.field("accepted").type == pa.bool_()
    assert not any(found[name].null_count for name in COLUMNS)
    rows = found.to_pydict()
    assert rows["clip_id"] == [f"c{number}" for number in range(200)]
    assert rows["pseudo_label"] == [NAMES[number] for number in values.argmax(1)]
    assert rows["raw_confidence"] == pytest.approx(values.max(1).tolist())
    assert rows["confidence"] == pytest.approx(apply_temperature(values, 2.0).max(1).tolist())
    assert set(rows["round"]) == {3}
    assert set(rows["teacher"]) == {"artifacts/finetune/abc"}
    assert rows["accepted"] == decide(apply_temperature(values, 2.0), in_groups(200), config).accepted.tolist()
    assert 0 < sum(rows["accepted"]) < 200
    assert all(bool(reason) != accepted for reason, accepted in zip(rows["reason"], rows["accepted"], strict=True))


def test_soft_labels_are_the_calibrated_probabilities() -> None:
    values = guesses(20)
    config = replace(threshold(0.6), labels="soft")
    found = label(values, config, replace(PLAIN, temperature=2.0)).table
    assert found.column_names == [*COLUMNS, "probabilities"]
    np.testing.assert_allclose(np.array(found["probabilities"].to_pylist()), apply_temperature(values, 2.0), atol=1e-6)
    sharpened = label(values, replace(config, sharpening=0.5), replace(PLAIN, temperature=2.0)).table
    np.testing.assert_allclose(np.array(sharpened["probabilities"].to_pylist()), values, atol=1e-6)
    assert sharpened["accepted"] == found["accepted"]
    with pytest.raises(ValueError, match=r"sharpening = 0\.5 has no effect on hard labels"):
        PseudoLabelConfig(confidence_threshold=0.6, sharpening=0.5)


@pytest.mark.parametrize("row", [{"split": "pool"}, {"split": "val"}, {"split": "test_a"}, {"scene_label": "bus"}])
def test_no_other_clip_can_get_a_label(row: dict[str, str]) -> None:
    clips = clip_table([{}, row])
    with pytest.raises(AssertionError, match="unlabelled clips of split train only"):
        pseudo_label(clips, guesses(2), PLAIN, NAMES, threshold(0.5), "teacher")


@pytest.mark.parametrize("config", [threshold(0.6), coverage(0.25), flexmatch(0.7), FREEMATCH])
def test_no_unlabelled_clip_is_an_empty_table(config: PseudoLabelConfig, tmp_path: Path) -> None:
    found = label(np.zeros((0, len(NAMES)), np.float32), config)
    assert len(found.table) == 0
    assert found.table.schema == label(guesses(3), config).table.schema
    counts = summary(found)
    assert counts["unlabelled"] == counts["accepted"] == counts["coverage"] == 0
    write_round(counts | {"agreement": None, "truth": None}, Folder(str(tmp_path)))
    assert "no unlabelled clip" in (tmp_path / "report.md").read_text()


def test_a_round_without_accepted_labels(tmp_path: Path) -> None:
    found = label(guesses(50, spread=0.5), threshold(0.99))
    assert set(found.table["reason"].to_pylist()) == {"confidence below 0.99"}
    counts = summary(found)
    assert (counts["unlabelled"], counts["accepted"], counts["coverage"]) == (50, 0, 0)
    assert counts["accepted_by_class"] == dict.fromkeys(NAMES, 0)
    write_round(counts | {"agreement": None, "truth": None}, Folder(str(tmp_path)))
    assert "No pseudo-label was accepted" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (threshold(0.6), "confidence below 0.6"),
        (flexmatch(0.7), "confidence below the threshold of its class"),
        (FREEMATCH, "confidence below the threshold of its class"),
        (coverage(0.25), "not among the most confident 0.25 of its class"),
    ],
)
def test_the_summary_counts_reasons_without_the_thresholds_of_classes(config: PseudoLabelConfig, reason: str) -> None:
    found = label(guesses(200), config)
    assert summary(found)["refused"] == {reason: 200 - sum(found.table["accepted"].to_pylist())}


@given(values=probabilities, share=shares)
def test_the_summary_counts_the_table(values: NDArray[np.float32], share: float) -> None:
    found = label(values, coverage(share))
    counts = summary(found)
    accepted = [row["pseudo_label"] for row in found.table.to_pylist() if row["accepted"]]
    assert counts["accepted"] == len(accepted) == sum(counts["accepted_by_class"].values())
    assert counts["accepted_by_class"] == {name: accepted.count(name) for name in NAMES}
    assert counts["empty_classes"] == [name for name in NAMES if name not in accepted]
    assert counts["coverage"] == pytest.approx(len(accepted) / max(1, len(values)))
    assert sum(counts["refused"].values()) == len(values) - len(accepted)


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("classifier.json", {"class_names": NAMES})
    check_teacher(folder, NAMES)
    with pytest.raises(ValueError, match=r"it doesn't know metro; no clip is labelled tram"):
        check_teacher(folder, ["airport", "bus", "metro", "park"])
    with pytest.raises(ValueError, match="their order differs"):
        check_teacher(folder, NAMES[::-1])


# Scores and report -------------------------------------------------------------------------------------------------


def test_agreement_of_two_rounds() -> None:
    first = label(np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]], threshold(0.9)).table
    then = np.eye(4, dtype=np.float32)[[0, 1, 2, 2, 1]]
    then[2] = [0.1, 0.1, 0.7, 0.1]  # guessed alike, and not accepted
    found = agreement(label(then, threshold(0.9)).table, first)
    assert (found["clips"], found["equal"]) == (5, 0.6)
    # observed .6; by chance a .4 x .2, b .2 x .4, c .2 x .4, d .2 x 0 = .24
    assert found["kappa"] == pytest.approx((0.6 - 0.24) / (1 - 0.24))
    assert (found["accepted_clips"], found["accepted_equal"]) == (4, 0.5)
    same = agreement(first.slice(0, 1), first.slice(0, 1))
    assert same["kappa"] is None


def test_the_truth_is_read_from_a_table_and_scores(tmp_path: Path) -> None:
    values = np.array([[0.9, 0.1, 0, 0], [0.6, 0.4, 0, 0], [0, 0.8, 0.2, 0], [0, 0, 0, 1]], np.float32)
    found = label(values, threshold(0.7)).table
    clips = pa.concat_tables([unlabelled(4), clip_table([{"clip_id": "known", "scene_label": "bus"}])])
    table = tmp_path / "truth.csv"
    table.write_text("filename,scene_label\nc0,airport\nc1,bus\nc2,bus\nc3,\nknown,bus\n")
    truth = read_truth(str(table), clips, NAMES)
    assert truth["clip_id"].to_pylist() == ["c0", "c1", "c2"]
    scored = against_truth(found, truth)
    assert scored is not None
    assert (scored["clips"], scored["accuracy"]) == (3, pytest.approx(2 / 3))
    assert (scored["accepted_clips"], scored["accepted_accuracy"]) == (2, 1.0)
    curve = scored["curve"]
    assert curve["coverage"][0] == 1
    assert curve["accuracy"][70] == 1
    assert len(curve["threshold"]) == 90  # none is surer than .9, which float32 rounds down


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("filename,scene_label\nc0,airport\nc9,bus\n", "column filename, row 3: 'c9': should name a clip of this run"),
        ("filename,scene_label\nc0,metro\n", "column scene_label, row 2: 'metro': should be one of airport, bus"),
        ("filename,scene_label\nc0,\n", "has the class of no unlabelled clip"),
        ("filename,label\nc0,bus\n", "no column scene_label"),
    ],
)
def test_wrong_truth_tables_are_errors(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_truth(str(tmp_path / "truth.csv"), unlabelled(3), NAMES)


def test_the_report_of_a_round(tmp_path: Path) -> None:
    values, truth = teacher(400, 2.0)
    held_out, known = teacher(300, 2.0, seed=7)
    calibration = calibrated_on_val(held_out, known, group_names(300, 60))
    values[values.argmax(1) == 3] *= [0.5, 0.5, 0.5, 0.1]  # the last class is never guessed
    found = label(values / values.sum(1, keepdims=True), flexmatch(0.8), calibration, number=2)
    classes = pa.array([NAMES[number] for number in truth])
    scored = against_truth(found.table, pa.table({"clip_id": found.table["clip_id"], "scene_label": classes}))
    result = summary(found) | {"agreement": agreement(found.table, found.table), "truth": scored}
    files = write_round(result, Folder(str(tmp_path)))
    assert {"figures/classes.png", "figures/reliability.png", "figures/accuracy.png"} <= set(files)
    assert all((tmp_path / name).stat().st_size > 1000 for name in files)
    text = (tmp_path / "report.md").read_text()
    assert "# Pseudo-labels, round 2" in text
    assert "Agreement with the previous round" in text
    assert "calibrated on: val" in text
    assert Folder(str(tmp_path)).read_json("report.json")["truth"]["clips"] == 400
    assert result["empty_classes"] == [] or f"no accepted pseudo-label is of {result['empty_classes'][0]}" in text
