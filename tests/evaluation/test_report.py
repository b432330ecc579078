"""Scores by split, and the tables and figures of reports."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from raymae.cluster.infer import places_of
from raymae.config import AudioConfig
from raymae.evaluation.baselines import SVMS
from raymae.evaluation.paired_test import holm
from raymae.evaluation.png import png
from raymae.evaluation.report import model_title, result_table, write_report
from raymae.evaluation.report.class_figures import FEWEST, confusion_figure, joined_bins, reliability_figure
from raymae.evaluation.report.figures import chosen_models, domain_figure, score_figure
from raymae.evaluation.report.sections import differences_section
from raymae.evaluation.report.writing import confused
from raymae.evaluation.scores import check_complete, comparisons, evaluation, mistakes, training_domains
from raymae.pipeline.evaluate import score_predictions
from raymae.storage.folder import Folder
from raymae.training.figures import (
    NOT_DRAWN,
    Reconstruction,
    curve_panels,
    learning_curves,
    reconstruction_figure,
    scale,
)
from tests.support.predictions import MODELS, NAMES, PREDICTIONS, judged, make_predictions

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
    found = evaluation(SMALL, NAMES, trained_on=training_domains(SMALL))
    assert list(found) == ["val", "test_a", "test_b"]
    val = found["val"]
    assert {key: val[key] for key in ("clips", "groups", "macro_accuracy_ci", "missing_classes", "confusion")} == {
        "clips": 3,
        "groups": 2,
        "macro_accuracy_ci": None,
        "missing_classes": ["park"],
        "confusion": [[1, 1, 0], [0, 0, 0], [0, 0, 1]],
    }
    assert val["macro_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert val["accuracy"] == pytest.approx(2 / 3)
    assert val["log_loss"] == pytest.approx(-(2 * np.log(0.8) + np.log(0.1)) / 3)
    assert val["ece"] == pytest.approx(0.8 - 2 / 3)
    assert val["accuracy_by_device"] == {"a": 1.0, "b": 0.5}
    assert val["accuracy_by_city"] == {"x": pytest.approx(2 / 3)}
    assert val["devices"]["a"]["seen"] is True
    assert val["devices"]["b"]["seen"] is False
    assert (val["seen_devices"]["clips"], val["unseen_devices"]["clips"]) == (1, 2)
    assert val["unseen_devices"]["macro_accuracy"] == pytest.approx(1 / 2)
    bus, park = val["by_class"]["bus"], val["by_class"]["park"]
    assert (bus["recall"], bus["precision"], bus["f1"]) == pytest.approx((0.5, 1.0, 2 / 3))
    assert (park["clips"], park["recall"], park["precision"]) == (0, None, 0.0)
    assert found["test_a"]["accuracy"] == 0
    assert found["test_a"]["unseen_devices"]["clips"] == 1


def test_a_clip_without_group_is_its_own() -> None:
    rows = [("test", name, "a", None, name) for name in NAMES for _ in range(5)]
    assert evaluation(make_predictions(rows), NAMES)["test"]["macro_accuracy_ci"] == (1.0, 1.0)
    rows[0] = (*rows[0][:3], "g", "bus")
    rows[1] = (*rows[1][:3], "g", "bus")
    assert evaluation(make_predictions(rows), NAMES)["test"]["macro_accuracy_ci"] is None


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="'moon' is not one of the classes bus, park, tram"):
        evaluation(make_predictions([("val", "moon", "a", None, "bus")]), NAMES)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The result of an evaluation; one path of its table holds what HTML and Markdown would take for theirs."""
    found = judged(
        score_predictions(PREDICTIONS, NAMES, "single", PREDICTIONS["svm"])
        | {
            "split": "visit, seed 3",
            "note": "Synthetic",
            "train_seconds": {"svm": 0.2, "svm_robust": 1.0, "cnn": 61.4, "student": 61.6},
            "val_chose": ["cnn"],
            "quarantined": {"val": 2},
            "silent": {"test": 3},
            "clips": None,
            "embeddings": {
                "layer": 6,
                "targets": {"device": {"names": ["a", "b"], "clips": 180, "groups": 18, "chance": 0.5}},
                "scores": {"random weights": {"device": 0.81}, "pre-trained": {"device": 0.62}},
            },
        }
    )
    found["mistakes"]["val"][0]["path"] = "<script>alert(1)</script>|x"
    return found


@pytest.fixture(scope="module")
def written(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of its pages and figures, and the files' names."""
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(report, Folder(str(folder)))


def test_columns_are_aligned() -> None:
    table = result_table(["model", "val"], [["one", "0.5"], ["another", "0.123"]])
    assert table.splitlines() == [
        "| model   |   val |",
        "| ------- | ----: |",
        "| one     |   0.5 |",
        "| another | 0.123 |",
    ]


def test_pages_name_every_model_split_and_device(report: dict[str, Any], written: tuple[Path, list[str]]) -> None:
    folder, names = written
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    found = report["metrics"]["cnn"]["test_seen"]
    low, high = found["macro_accuracy_ci"]
    line = next(line for line in sections["Macro accuracy by split"].splitlines() if line.startswith("| CNN"))
    assert f"{found['macro_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in line
    assert line.endswith(" 61.4 s |")
    assert "test_unseen (90 clips)" in sections["Macro accuracy by split"]
    assert "The weights of CNN from scratch were selected on val: their val scores are optimistic." in text
    assert "not scored: 2 of val" in text
    line = next(line for line in sections["Accuracy by device"].splitlines() if "s5" in line)
    assert f"{report['metrics']['student']['test_unseen']['accuracy_by_device']['s5']:.3f}" in line
    assert "unseen" in line
    assert "0.620" in sections["Probes of the embeddings"]
    numbered = [part for part in sections.values() if part.count("|") > 5]
    assert len(numbered) >= 8
    assert text.count("visit, seed 3") == page.count("visit, seed 3") == 1
    assert text.startswith(f"# Evaluation of MAE, with pseudo-labels\n\n**{report['verdict']['sentence']}**\n")
    best = max(report["metrics"], key=lambda name: report["metrics"][name]["val"]["macro_accuracy"])
    bold = [
        line
        for line in sections["Macro accuracy by split"].splitlines()
        if line.split("|")[2:3] and "**" in line.split("|")[2]
    ]
    assert [line.split("|")[1].strip() for line in bold] == [model_title(best)]
    for word in ("None", "nan"):
        assert word not in text
    for name in (name for name in names if name.endswith(".png")):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    assert page.count("data:image/png;base64,") == sum(name.endswith(".png") for name in names) >= 3
    assert 'src="figures' not in page
    assert json.loads((folder / "report.json").read_text())["metrics"] == report["metrics"]


def test_pages_escape_what_a_table_brings(written: tuple[Path, list[str]]) -> None:
    page = (written[0] / "report.html").read_text()
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    digest = hashlib.sha256(page.partition("<script>")[2].partition("</script>")[0].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in page
    assert "alert(1)</script>\\|x" in (written[0] / "report.md").read_text()


def test_missing_classes_are_named(tmp_path: Path) -> None:
    table = SMALL.append_column("path", SMALL["clip_id"])
    found = score_predictions({"cnn": table}, NAMES, "single", table)
    extra = {
        "split": "s",
        "note": None,
        "train_seconds": {"cnn": 3.0},
        "val_chose": [],
        "quarantined": {},
        "silent": {},
        "clips": None,
    }
    write_report(judged(found | extra | {"embeddings": None}), Folder(str(tmp_path)))
    text = (tmp_path / "report.md").read_text()
    assert "val has no clip of park: its score is the mean over the other classes." in text
    assert "No interval of val: bus has 1 group, fewer than 5, tram has 1 group, fewer than 5." in text
    assert "None" not in text
    assert "selected on val" not in text


def test_svms_have_no_confidence(report: dict[str, Any]) -> None:
    for name in MODELS:
        assert (report["metrics"][name]["val"]["ece"] is None) == (name in SVMS)


def test_every_clip_counts_exactly_once() -> None:
    table = PREDICTIONS["svm"]
    check_complete(table, table)
    rows = np.arange(len(table))
    for wrong, message in (
        (rows[:-1], r"split test_unseen has 90 labelled clips and 89 were scored: clip 'clip\d+' was not scored"),
        (np.append(rows, rows[-1]), "91 were scored: clip 'clip\\d+' was scored more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            check_complete(table.take(wrong), table)
    with pytest.raises(ValueError, match="is not in the split"):
        check_complete(table, table.take(rows[:-1]))


@given(st.permutations(range(30)))
def test_rows_come_back_in_their_places(order: list[int]) -> None:
    rows = np.arange(30, dtype=np.int64) * 3
    came = rows[order]
    assert np.array_equal(came[places_of(rows, came)], rows)
    assert np.array_equal(rows[places_of(came, rows)], came)
    with pytest.raises(ValueError, match=r"1 missing \(row 0"):
        places_of(rows, came[came != 0])
    with pytest.raises(ValueError, match="1 more than once"):
        places_of(rows, np.append(came, came[0]))


def test_mistakes_are_the_most_confident_of_each_group() -> None:
    rows = [("test", name, "a", group, "bus") for group, name in (("g1", "park"), ("g2", "tram"), ("g3", "bus"))] * 2
    rows.append(("test", "bus", "a", "g2", "bus"))
    table = make_predictions(rows)
    surer = table["probabilities"].to_pylist()
    surer[4] = [0.95, 0.03, 0.02]  # the second clip of g2
    table = table.set_column(
        table.column_names.index("probabilities"), "probabilities", pa.array(surer, pa.list_(pa.float32()))
    )
    found = mistakes(table.append_column("path", table["clip_id"]), NAMES)["test"]
    assert [(one["path"], one["true"], one["predicted"]) for one in found] == [
        ("clip4", "tram", "bus"),
        ("clip0", "park", "bus"),
    ]
    assert [one["confidence"] for one in found] == pytest.approx([0.95, 0.8])
    assert [(one["group_wrong"], one["group_clips"]) for one in found] == [(2, 3), (2, 2)]


def test_the_list_of_mistakes_is_short(report: dict[str, Any]) -> None:
    assert all(0 < len(found) <= 20 for found in report["mistakes"].values())


def test_models_are_compared_on_the_same_clips(report: dict[str, Any]) -> None:
    found = report["comparisons"]["svm"]["test_seen"]
    first, second = (report["metrics"][name]["test_seen"]["macro_accuracy"] for name in ("student", "svm"))
    assert found["value"] == pytest.approx(first - second)
    assert found["first"] == pytest.approx(first)
    assert found["interval"][0] < found["value"] < found["interval"][1]
    shuffled = PREDICTIONS["svm"].take(np.random.default_rng(0).permutation(len(PREDICTIONS["svm"])))
    again = comparisons(PREDICTIONS["student"], shuffled, NAMES)["test_seen"]
    assert again["p_value"] == pytest.approx(found["p_value"])
    everything = [one for by_split in report["comparisons"].values() for one in by_split.values()]
    assert [one["p_holm"] for one in everything] == holm([one["p_value"] for one in everything])
    section = differences_section(report)
    assert section is not None
    assert f"corrected for the number of rows, {len(everything)}, by Holm's method" in str(section.blocks[0])
    row = pc.index(PREDICTIONS["svm"]["split"], "val").as_py()
    fewer = PREDICTIONS["svm"].take(np.delete(np.arange(len(PREDICTIONS["svm"])), row))
    with pytest.raises(ValueError, match="their clips of val differ: 90 and 89"):
        comparisons(PREDICTIONS["student"], fewer, NAMES)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_figure_shows_shares_and_counts() -> None:
    found = evaluation(SMALL, NAMES)
    figure = confusion_figure(found["val"], NAMES)
    assert texts(figure) == ["50%\n1", "50%\n1", "100%\n1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["bus (2)", "park (none)", "tram (1)"]
    assert confused(found["val"], NAMES) == "Most often mistaken: bus as park (1)."


def test_domain_figure_has_a_row_per_device_with_its_counts(report: dict[str, Any]) -> None:
    models = chosen_models(report["metrics"], "macro_accuracy")
    assert len(models) == 3
    figure = domain_figure(report["metrics"], models, "devices", "accuracy")
    assert [sum(line.get_gid() == "score" for line in axes.lines) for axes in figure.axes] == [2 * 3] * 3
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert labels == ["s4* (45 clips, 18 groups)", "s5* (45 clips, 18 groups)"]


def test_score_figure_has_a_mark_per_model_and_split(report: dict[str, Any]) -> None:
    (axes,) = score_figure(report["metrics"], "macro_accuracy", dict.fromkeys(report["metrics"]["cnn"], 1 / 3)).axes
    assert sum(line.get_gid() == "score" for line in axes.lines) == 4 * 3
    assert sum(line.get_gid() == "interval" for line in axes.lines) == 4 * 3


def test_reliability_figure_shows_models_that_give_probabilities(report: dict[str, Any]) -> None:
    above, _ = reliability_figure(report["metrics"], "val").axes
    assert len(above.lines) == 3  # the diagonal, the CNN, the student


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=15))
def test_points_of_a_reliability_diagram_are_of_enough_guesses(bins: list[tuple[int, float, float]]) -> None:
    table: dict[str, list[float | None]] = {
        "count": [count for count, _, _ in bins],
        "confidence": [confidence if count else None for count, confidence, _ in bins],
        "right": [right if count else None for count, _, right in bins],
    }
    joined = joined_bins(table)
    total = sum(count for count, _, _ in bins)
    assert sum(count for _, _, count in joined) == total
    assert len(joined) == (total > 0) or all(count >= FEWEST for _, _, count in joined)
    for place in (0, 1):
        mean = sum(point[place] * point[2] for point in joined)
        assert mean == pytest.approx(sum(count * rest[place] for count, *rest in bins))


def test_learning_curves_show_what_there_is() -> None:
    events = [{"step": step, "metrics": {"loss": 1 / step, "lr": 0.1, "epoch": 0.1}} for step in (1, 2, 3)]
    events[2]["metrics"] |= {"val/macro_accuracy": 0.5, "probe/scene": 0.4, "probe/city": 0.7, "novel": 3.0}
    figure = learning_curves(events, "finetune")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["loss", "validation", "probe", "learning rate", "novel"]
    drawn = dict(zip(labels, figure.axes, strict=True))
    assert drawn["validation"].lines[0].get_xydata().tolist() == [[3, 0.5]]
    assert [line.get_label() for line in drawn["probe"].lines] == ["probe/city", "probe/scene"]
    kept = [line for axes in learning_curves(events, "finetune", 2).axes for line in axes.lines if line.get_gid()]
    assert [(line.get_gid(), line.get_xdata()[0]) for line in kept] == [("kept", 2)] * 5
    assert len(learning_curves(events[:2], "pretrain").axes) == 2
    assert png(learning_curves([], "nothing yet")).startswith(b"\x89PNG")


@given(
    st.sets(st.sampled_from(["loss", "loss/a", "lr", "val/x", "probe/y/z", "new", "teacher/sim", "epoch", "grad_norm"]))
)
def test_every_metric_is_drawn_once(names: set[str]) -> None:
    panels = curve_panels(names)
    assert sorted(name for chosen in panels.values() for name in chosen) == sorted(names - set(NOT_DRAWN))
    assert all(panels.values())


def test_the_effective_rank_has_its_own_panel() -> None:
    panels = curve_panels({"probe/scene", "probe/effective_rank"})
    assert panels == {"effective rank": ["probe/effective_rank"], "probe": ["probe/scene"]}


@given(st.lists(st.floats(0.5, 1.5), min_size=60, max_size=80))
def test_a_few_large_values_don_t_flatten_a_curve(values: list[float]) -> None:
    assert scale([*values, 1000.0]) is None or scale([*values, 1000.0])[1] < 3
    assert scale([1000.0, *np.linspace(1, 2, 60)])[1] < 3
    assert scale(np.linspace(1, 2, 60)) is None


def test_reconstruction_in_seconds_and_kilohertz() -> None:
    audio = AudioConfig(sample_rate=16_000, n_fft=1024, win_length=640, hop_length=320, n_mels=64, clip_seconds=2)
    log_mel = np.random.default_rng(0).normal(size=(96, 64))
    removed = np.zeros((96, 64), bool)
    removed[:72] = True
    clip = Reconstruction(name="clip", log_mel=log_mel, removed=removed, maps={"reconstruction": log_mel})
    figure = reconstruction_figure([clip, clip], audio, "two")
    assert [axes.get_title() for axes in figure.axes[3:6]] == [axes.get_title() for axes in figure.axes[:3]]
    assert figure.axes[1].get_title() == "visible to the encoder (25%)"
    assert figure.axes[0].get_xlim() == (0, pytest.approx(1.92))
    ticks = dict(
        zip([t.get_text() for t in figure.axes[0].get_yticklabels()], figure.axes[0].get_yticks(), strict=True)
    )
    expected = 65 * np.log1p(2000 / 700) / np.log1p(8000 / 700) - 1
    assert ticks["2"] == pytest.approx(expected, abs=1)
    assert "16" not in ticks
    assert png(figure).startswith(b"\x89PNG")
