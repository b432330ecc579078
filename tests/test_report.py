"""Metrics by split, tables that can be read as text, figures that can be drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from raymae.artifacts import Folder
from raymae.config import AudioConfig
from raymae.figures import UNDRAWN, curve_panels, learning_curves, png, reconstruction_figure
from raymae.report import Evaluation, confusion_figure, device_figure, evaluation, figures, report_text, result_table

NAMES = ["bus", "park", "tram"]


def make_predictions(rows: list[tuple[str, str | None, str, str | None, str]]) -> pa.Table:
    """Clips (split, scene_label, device, group, guess) whose guess has probability 0.8."""
    columns: dict[str, list[Any]] = {
        name: [row[place] for row in rows] for place, name in enumerate(("split", "scene_label", "device", "group"))
    }
    table = pa.table(
        columns | {"city": ["x"] * len(rows), "clip_id": [f"clip{number}" for number in range(len(rows))]},
        pa.schema([(name, pa.string()) for name in ("split", "scene_label", "device", "group", "city", "clip_id")]),
    )
    probabilities = [[0.8 if name == row[4] else 0.1 for name in NAMES] for row in rows]
    return table.append_column("probabilities", pa.array(probabilities, pa.list_(pa.float32())))


SMALL = make_predictions(
    [
        ("test_b", "bus", "a", "g1", "bus"),
        ("val", "bus", "a", "g2", "bus"),
        ("val", "bus", "b", "g2", "park"),
        ("val", "tram", "b", "g3", "tram"),
        ("val", None, "b", "g3", "park"),
        ("train", "bus", "a", "g4", "tram"),
        ("pool", "bus", "a", "g5", "tram"),
        ("test_a", "park", "s1", None, "bus"),
    ]
)


def test_evaluation_by_hand() -> None:
    found = evaluation(SMALL, NAMES)
    assert list(found) == ["val", "test_a", "test_b"]
    assert found["val"] == {
        "clips": 3,
        "macro_accuracy": pytest.approx((1 / 2 + 1) / 2),
        "macro_accuracy_ci": None,
        "accuracy": pytest.approx(2 / 3),
        "log_loss": pytest.approx(-(2 * np.log(0.8) + np.log(0.1)) / 3),
        "ece": pytest.approx(0.8 - 2 / 3),
        "missing_classes": ["park"],
        "accuracy_by_device": {"a": 1.0, "b": 0.5},
        "accuracy_by_city": {"x": pytest.approx(2 / 3)},
        "confusion": [[1, 1, 0], [0, 0, 0], [0, 0, 1]],
    }
    assert found["test_a"]["accuracy"] == 0


def test_a_clip_without_group_is_its_own() -> None:
    rows = [("test", name, "a", None, name) for name in NAMES for _ in range(5)]
    assert evaluation(make_predictions(rows), NAMES)["test"]["macro_accuracy_ci"] == [1.0, 1.0]
    rows[0] = (*rows[0][:3], "g", "bus")
    rows[1] = (*rows[1][:3], "g", "bus")
    assert evaluation(make_predictions(rows), NAMES)["test"]["macro_accuracy_ci"] is None


def test_a_strange_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="'moon' is none of the classes bus, park, tram"):
        evaluation(make_predictions([("val", "moon", "a", None, "bus")]), NAMES)


def make_evaluation(share: float, seed: int) -> Evaluation:
    """Three splits, four devices, and a model that is right with probability `share`."""
    rng = np.random.default_rng(seed)
    rows = []
    for split, devices in {"val": "ab", "test_seen": "ab", "test_unseen": ("s4", "s5")}.items():
        for number in range(90):
            truth = NAMES[number % 3]
            guess = truth if rng.random() < share else NAMES[rng.integers(3)]
            rows.append((split, truth, devices[number // 3 % 2], f"g{number // 5}", guess))
    return evaluation(make_predictions(rows), NAMES)


METRICS = {name: make_evaluation(0.3 + 0.1 * k, k) for k, name in enumerate(("svm", "svm_robust", "cnn", "student"))}
SECONDS = {"svm": 0.2, "svm_robust": 1.0, "cnn": 61.4, "student": 61.6}


def test_columns_are_aligned() -> None:
    table = result_table(["model", "val"], [["one", "0.5"], ["another", "0.123"]])
    assert table.splitlines() == [
        "| model   |   val |",
        "| ------- | ----: |",
        "| one     |   0.5 |",
        "| another | 0.123 |",
    ]


def test_text_names_every_model_split_and_device() -> None:
    text = report_text(METRICS, SECONDS, "Synthetic.")
    tables = text.split("## ")
    assert tables[1].startswith("Macro accuracy by split")
    low, high = METRICS["cnn"]["test_seen"]["macro_accuracy_ci"]
    line = next(line for line in tables[1].splitlines() if "CNN" in line)
    assert f"{METRICS['cnn']['test_seen']['macro_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in line
    assert line.endswith(" 61.4 s |")
    assert "test_unseen (90 clips)" in tables[1]
    line = next(line for line in tables[2].splitlines() if "s5" in line)
    assert f"{METRICS['student']['test_unseen']['accuracy_by_device']['s5']:.3f}" in line
    assert [table.count("Synthetic.") for table in tables] == [0, 1, 1]


def test_text_says_which_classes_are_missing() -> None:
    text = report_text({"cnn": evaluation(SMALL, NAMES)}, {"cnn": 3.0})
    assert "val has no clip of park: its macro accuracy is over the other classes." in text
    assert "None" not in text


def test_figures_are_written(tmp_path: Path) -> None:
    names = figures(METRICS, NAMES, Folder(str(tmp_path)))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_figure_shows_the_counts() -> None:
    figure = confusion_figure(evaluation(SMALL, NAMES), NAMES, "model")
    assert [axes.get_title() for axes in figure.axes] == [
        "val: macro accuracy 0.750",
        "test_a: macro accuracy 0.000",
        "test_b: macro accuracy 1.000",
    ]
    assert texts(figure) == ["1"] * 5


def test_device_figure_has_a_bar_per_model_and_device() -> None:
    figure = device_figure(METRICS, "accuracy_by_device", "accuracy")
    assert [len(axes.patches) for axes in figure.axes] == [8, 8, 8]
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["s4", "s5"]


def test_learning_curves_show_what_there_is() -> None:
    events = [{"step": step, "metrics": {"loss": 1 / step, "lr": 0.1, "epoch": 0.1}} for step in (1, 2, 3)]
    events[2]["metrics"] |= {"val/macro_accuracy": 0.5, "probe/scene": 0.4, "probe/city": 0.7, "novel": 3.0}
    figure = learning_curves(events, "finetune")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "validation", "probe", "learning rate", "other"]
    drawn = dict(zip(labels, figure.axes, strict=True))
    assert drawn["validation"].lines[0].get_xydata().tolist() == [[3, 0.5]]
    assert [line.get_label() for line in drawn["probe"].lines] == ["probe/city", "probe/scene"]
    assert [text.get_text() for text in drawn["other"].get_legend().get_texts()] == ["novel"]
    assert len(learning_curves(events[:2], "pretrain").axes) == 2
    assert png(learning_curves([], "nothing yet")).startswith(b"\x89PNG")


@given(
    st.sets(st.sampled_from(["loss", "loss/a", "lr", "val/x", "probe/y/z", "new", "teacher/sim", "epoch", "grad_norm"]))
)
def test_every_metric_is_drawn_once(names: set[str]) -> None:
    panels = curve_panels(names)
    assert sorted(name for chosen in panels.values() for name in chosen) == sorted(names - set(UNDRAWN))
    assert all(panels.values())


def test_text_says_whose_weights_val_chose() -> None:
    note = "val chose the weights of CNN from scratch: its scores flatter them."
    assert note in report_text(METRICS, SECONDS, chosen=["cnn"])
    assert "val chose" not in report_text(METRICS, SECONDS)


def test_reconstruction_in_seconds_and_kilohertz() -> None:
    audio = AudioConfig(sample_rate=16_000, n_fft=1024, win_length=640, hop_length=320, n_mels=64, clip_seconds=2)
    log_mel = np.random.default_rng(0).normal(size=(96, 64))
    removed = np.zeros((96, 64), bool)
    removed[:72] = True
    figure = reconstruction_figure(log_mel, removed, log_mel, audio, "clip")
    assert figure.axes[1].get_title() == "seen (25% of it)"
    assert figure.axes[0].get_xlim() == (0, pytest.approx(1.92))
    ticks = dict(
        zip([t.get_text() for t in figure.axes[0].get_yticklabels()], figure.axes[0].get_yticks(), strict=True)
    )
    expected = 65 * np.log1p(2000 / 700) / np.log1p(8000 / 700) - 1
    assert ticks["2"] == pytest.approx(expected, abs=1)
    assert "16" not in ticks
    assert png(figure).startswith(b"\x89PNG")
