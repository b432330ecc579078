"""Metrics, tables and figures of multi-label clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymae.evaluation.report import write_report
from raymae.evaluation.report.class_figures import class_figure
from raymae.evaluation.report.class_sections import ROWS_SHOWN, precision_tables, ranking
from raymae.evaluation.report.figures import NAMES_SHOWN
from raymae.evaluation.scores import Evaluation, evaluation
from raymae.pipeline.evaluate import score_predictions
from raymae.storage.folder import Folder
from tests.support.predictions import judged

NAMES = ["dog", "rain", "speech", "whale"]


def make_predictions(rows: list[tuple[str, str | None, str]], probabilities: np.ndarray) -> pa.Table:
    """Clips (split, scene_label, device), each its own group, with their probabilities."""
    strings = [(name, pa.string()) for name in ("split", "scene_label", "device", "city", "group", "clip_id")]
    columns = [dict(zip(("split", "scene_label", "device"), row, strict=True)) for row in rows]
    for number, column in enumerate(columns):
        column["clip_id"] = f"clip{number}"
    table = pa.Table.from_pylist(columns, pa.schema(strings))
    return table.append_column(
        "probabilities", pa.array(list(probabilities.astype(np.float32)), pa.list_(pa.float32()))
    )


SMALL = make_predictions(
    [
        ("test", "dog;rain", "a"),
        ("val", "dog;rain", "a"),
        ("val", "rain", "a"),
        ("val", "speech", "b"),
        ("val", None, "b"),
        ("train", "whale", "b"),
    ],
    np.array([[0.9, 0.8, 0.1, 0], [0.9, 0.2, 0.1, 0], [0.8, 0.9, 0.2, 0], [0.7, 0.5, 0.9, 0], [1, 1, 1, 1], [0] * 4]),
)


def test_evaluation_by_hand() -> None:
    found = evaluation(SMALL, NAMES, "multi")
    assert list(found) == ["val", "test"]
    right = [0.9, 0.2, 0.9, 1, 0.2, 0.9, 0.8, 1, 0.3, 0.5, 0.9, 1]
    val = found["val"]
    assert val["clips"] == 3
    assert val["mAP"] == pytest.approx((1 + 5 / 6 + 1) / 3)
    assert val["mAP_ci"] is None
    assert val["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    assert val["missing_classes"] == ["whale"]
    assert {name: one["clips"] for name, one in val["by_class"].items()} == {
        "dog": 1,
        "rain": 2,
        "speech": 1,
        "whale": 0,
    }
    assert val["by_class"]["rain"]["average_precision"] == pytest.approx(5 / 6)
    assert val["by_class"]["whale"]["average_precision"] is None
    assert val["mAP_by_device"] == {"a": 1.0, "b": 1.0}  # over the classes that occur there
    assert val["mAP_by_city"] == {"unknown": pytest.approx((1 + 5 / 6 + 1) / 3)}


def test_an_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="'moon' is not one of the classes dog, rain, speech, whale"):
        evaluation(make_predictions([("val", "dog;moon", "a")], np.ones((1, 4))), NAMES, "multi")


def make_guesses(names: list[str], noise: float, splits: tuple[str, ...] = ("val", "test")) -> pa.Table:
    rng = np.random.default_rng(0)
    truth = rng.random((60, len(names))) < 0.3
    truth[np.arange(60), np.arange(60) % len(names)] = True
    texts = [";".join(name for name, there in zip(names, row, strict=True) if there) for row in truth]
    rows = [(splits[number % len(splits)], text, "ab"[number // 3 % 2]) for number, text in enumerate(texts)]
    scores = 1 / (1 + np.exp(-(truth + rng.normal(scale=noise, size=truth.shape))))
    table = make_predictions(rows, scores)
    return table.append_column("path", table["clip_id"])


def make_evaluation(names: list[str], noise: float) -> Evaluation:
    return evaluation(make_guesses(names, noise), names, "multi")


def pages(predictions: dict[str, pa.Table], folder: Path) -> tuple[str, dict[str, Any]]:
    """The report's text and its data."""
    found = score_predictions(predictions, NAMES, "multi", next(iter(predictions.values())))
    extra = {
        "split": "as the table says",
        "note": "Synthetic",
        "train_seconds": dict.fromkeys(predictions, 61.6),
        "val_chose": [],
        "quarantined": {},
        "silent": {},
        "clips": None,
        "embeddings": None,
    }
    report = judged(found | extra)
    for name in write_report(report, Folder(str(folder))):
        assert (folder / name).stat().st_size > 500
    return (folder / "report.md").read_text(), report


def test_pages_name_every_model_split_device_and_class(tmp_path: Path) -> None:
    tables = {"cnn": make_guesses(NAMES, 1.0), "finetune": make_guesses(NAMES, 0.3)}
    text, report = pages(tables, tmp_path)
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    low, high = report["metrics"]["cnn"]["test"]["mAP_ci"]
    line = next(line for line in sections["mAP by split"].splitlines() if "CNN" in line)
    assert f"{report['metrics']['cnn']['test']['mAP']:.3f} [{low:.3f}, {high:.3f}]" in line
    line = next(line for line in sections["mAP by device"].splitlines() if line.split()[1:4:2] == ["test", "b"])
    assert f"{report['metrics']['finetune']['test']['mAP_by_device']['b']:.3f}" in line
    found = report["metrics"]["finetune"]["test"]["by_class"]
    for name in NAMES:
        part = sections["Average precision by class: MAE, fine-tuned"]
        line = next(line for line in part.splitlines() if line.startswith(f"| {name}"))
        assert f"{found[name]['average_precision']:.3f}" in line
        assert f"({found[name]['clips']})" in line
    assert report["comparisons"]["cnn"]["test"]["value"] > 0


def test_missing_classes_are_named(tmp_path: Path) -> None:
    text, _ = pages({"finetune": SMALL.append_column("path", SMALL["clip_id"])}, tmp_path)
    assert "val has no clip of whale: its score is the mean over the other classes." in text
    assert "test has no clip of speech, whale: " in text
    assert "nan" not in text


@pytest.fixture(scope="module")
def many() -> Evaluation:
    """An evaluation of more classes than a figure names."""
    return make_evaluation([f"class{number:03d}" for number in range(NAMES_SHOWN + 4)], 1.0)


def test_of_many_classes_the_ends_are_shown(many: Evaluation) -> None:
    ranked = ranking(many)
    scores = [many["test"]["by_class"][name]["average_precision"] for name in ranked]
    assert scores == sorted(scores, reverse=True)
    text, table = precision_tables(many)
    assert "of 64 classes" in text
    assert [row[0] for row in table.rows] == ranked[:ROWS_SHOWN] + ranked[-ROWS_SHOWN:]
    assert len(list(precision_tables(make_evaluation(NAMES, 1.0)))) == 1


def test_class_figure_has_a_mark_per_class_and_split(many: Evaluation) -> None:
    small = evaluation(SMALL, NAMES, "multi")
    (axes,) = class_figure(small, ranking(small)).axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert list(drawn) == ["val: mAP 0.944", "test: mAP 1.000"]
    assert drawn["val: mAP 0.944"][ranking(small).index("rain")][0] == pytest.approx(5 / 6)
    assert [len(line.get_xdata()) for line in class_figure(many, ranking(many)).axes[0].lines] == [NAMES_SHOWN + 4] * 2
