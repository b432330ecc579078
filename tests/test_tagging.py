"""Metrics, tables and figures where clips have several classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymae.artifacts import Folder
from raymae.tagging import ROWS_SHOWN, class_figure, class_table, evaluation, figures, map_by, ranking, report_text

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
    found = evaluation(SMALL, NAMES)
    assert list(found) == ["val", "test"]
    right = [0.9, 0.2, 0.9, 1, 0.2, 0.9, 0.8, 1, 0.3, 0.5, 0.9, 1]
    assert found["val"] == {
        "clips": 3,
        "mAP": pytest.approx((1 + 5 / 6 + 1) / 3),
        "mAP_ci": None,
        "log_loss": pytest.approx(-np.log(right).mean(), rel=1e-5),
        "missing_classes": ["whale"],
        "average_precision": {"dog": 1.0, "rain": pytest.approx(5 / 6), "speech": 1.0},
        "clips_by_class": {"dog": 1, "rain": 2, "speech": 1, "whale": 0},
        "mAP_by_device": {"a": 1.0, "b": 1.0},
        "mAP_by_city": {"unknown": pytest.approx((1 + 5 / 6 + 1) / 3)},
    }


def test_a_device_is_scored_on_the_classes_that_occur_there() -> None:
    truth, scores = np.array([[1, 0], [1, 1], [0, 1]]), np.array([[0.2, 0.9], [0.1, 0.8], [0.3, 0.7]])
    assert map_by(truth, scores, ["x", "x", None]) == pytest.approx({"unknown": 1.0, "x": (1 + 1 / 2) / 2})


def test_a_strange_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="'moon' is none of the classes dog, rain, speech, whale"):
        evaluation(make_predictions([("val", "dog;moon", "a")], np.ones((1, 4))), NAMES)


def make_evaluation(names: list[str], noise: float, splits: tuple[str, ...] = ("val", "test")) -> dict[str, object]:
    rng = np.random.default_rng(0)
    truth = rng.random((60, len(names))) < 0.3
    truth[np.arange(60), np.arange(60) % len(names)] = True
    texts = [";".join(name for name, there in zip(names, row, strict=True) if there) for row in truth]
    rows = [(splits[number % len(splits)], text, "ab"[number // 3 % 2]) for number, text in enumerate(texts)]
    return evaluation(
        make_predictions(rows, 1 / (1 + np.exp(-(truth + rng.normal(scale=noise, size=truth.shape))))), names
    )


def test_text_names_every_model_split_device_and_class() -> None:
    metrics = {"cnn": make_evaluation(NAMES, 1.0), "finetune": make_evaluation(NAMES, 0.3)}
    text = report_text(metrics, {"cnn": 61.4, "finetune": 61.6}, "Synthetic.")
    tables = text.split("## ")
    assert tables[1].startswith("mAP by split")
    low, high = metrics["cnn"]["test"]["mAP_ci"]
    line = next(line for line in tables[1].splitlines() if "CNN" in line)
    assert f"{metrics['cnn']['test']['mAP']:.3f} [{low:.3f}, {high:.3f}]" in line
    assert line.endswith(" 61.4 s |")
    line = next(line for line in tables[2].splitlines() if line.split()[1:4:2] == ["test", "b"])
    assert f"{metrics['finetune']['test']['mAP_by_device']['b']:.3f}" in line
    assert tables[3].startswith("Average precision by class: MAE, fine-tuned")
    found = metrics["finetune"]["test"]
    for name in NAMES:
        line = next(line for line in tables[3].splitlines() if name in line)
        assert f"{found['average_precision'][name]:.3f} ({found['clips_by_class'][name]})" in line
    assert [table.count("Synthetic.") for table in tables] == [0, 1, 1, 1]


def test_text_says_which_classes_are_missing() -> None:
    text = report_text({"finetune": evaluation(SMALL, NAMES)}, {"finetune": 3.0})
    assert "val has no clip of whale: its mAP is over the others." in text
    assert "test has no clip of speech, whale: " in text
    assert "nan" not in text


def test_of_many_classes_the_ends_are_shown() -> None:
    names = [f"class{number:03d}" for number in range(40)]
    found = make_evaluation(names, 1.0)
    ranked = ranking(found)
    scores = [found["test"]["average_precision"][name] for name in ranked]
    assert scores == sorted(scores, reverse=True)
    said, table = class_table(found)
    assert "of 40" in said
    shown = [line.split()[1] for line in table.splitlines()[2:]]
    assert shown == ranked[:ROWS_SHOWN] + ranked[-ROWS_SHOWN:]
    assert len(class_table(make_evaluation(NAMES, 1.0))) == 1


def test_figures_are_written(tmp_path: Path) -> None:
    metrics = {"cnn": make_evaluation(NAMES, 1.0), "finetune": make_evaluation(NAMES, 0.3)}
    names = figures(metrics, NAMES, Folder(str(tmp_path)))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_class_figure_has_a_bar_per_class_and_split() -> None:
    figure = class_figure(evaluation(SMALL, NAMES), "model")
    assert [axes.get_title() for axes in figure.axes] == ["val: mAP 0.944", "test: mAP 1.000"]
    lengths = dict(zip(ranking(evaluation(SMALL, NAMES)), figure.axes[0].patches, strict=True))
    assert lengths["rain"].get_width() == pytest.approx(5 / 6)
    assert len(class_figure(make_evaluation([f"c{number}" for number in range(80)], 1.0), "many").axes) == 2
