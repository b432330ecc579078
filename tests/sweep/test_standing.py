"""The winner of a sweep and the points that can't be told from it, from predictions made up for the test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymae.config import Config, SweepConfig
from raymae.storage.folder import Folder
from raymae.sweep.outcome import Outcome
from raymae.sweep.points import Point
from raymae.sweep.results import Record
from raymae.sweep.space import parse_axis
from raymae.sweep.standing import read_predictions, standings, tied, write_predictions

CLASSES = ["bus", "park", "tram"]
N, GROUPS = 240, 60
RATIOS = (0.5, 0.6, 0.7, 0.8)
AXES = [parse_axis("model.mask_ratio=0.5,0.6,0.7,0.8")]


def record(ratio: float, score: float | None = None, **more: Any) -> Record:
    values = {"model.mask_ratio": ratio}
    found: dict[str, Any] = {"status": "finished", "score": score} | more
    return Record(key=Point(values).key, changes=values, **found)


def clips() -> pa.Table:
    rows = np.arange(N)
    return pa.table(
        {
            "clip_id": [f"c{row:03d}" for row in rows],
            "split": ["val"] * N,
            "group": [f"g{row % GROUPS}" for row in rows],
            "scene_label": [CLASSES[row % GROUPS % 3] for row in rows],
        }
    )


def predict(folder: Folder, key: str, wrong_groups: set[int], classes: list[str] | None = None) -> None:
    """A model that is wrong for all clips of these groups."""
    names = classes or CLASSES
    truth = np.arange(N) % GROUPS % 3
    guess = np.where(np.isin(np.arange(N) % GROUPS, list(wrong_groups)), (truth + 1) % 3, truth)
    probabilities = np.zeros((N, len(names)), np.float32)
    probabilities[np.arange(N), [names.index(CLASSES[one]) for one in guess]] = 1
    write_predictions(folder, key, clips(), names, probabilities)


@pytest.fixture
def ended(tmp_path: Path) -> tuple[Folder, list[Record]]:
    """A winner, a point a group behind, one far behind, and a failed one."""
    folder = Folder(str(tmp_path))
    records = [
        record(0.5, 0.90, flops=9e12),
        record(0.6, 54 / 60 - 0.02, flops=3e12),
        record(0.7, 0.5, flops=1e12),
        record(0.8, None, status="failed", error="OSError: <gone>"),
    ]
    for one, wrong in zip(records, (range(6), range(7), range(30)), strict=False):
        predict(folder, one.key, set(wrong))
    return folder, records


def test_points_that_cannot_be_told_from_the_winner_are_named(ended: tuple[Folder, list[Record]]) -> None:
    folder, records = ended
    found = standings(records, folder, "single")
    best, near, far = (found[one.key] for one in records[:3])
    assert best.p is None
    assert best.interval is not None
    assert best.interval[0] < 0.9 < best.interval[1]
    assert near.p is not None
    assert near.p > 0.3
    assert near.behind == pytest.approx(1 / 60)
    assert far.p is not None
    assert far.p < 0.01
    assert [one.changes["model.mask_ratio"] for one in tied(records, found)] == [0.5, 0.6]


@pytest.mark.parametrize(("prefer", "ratio"), [("best", 0.5), ("cheap", 0.6)])
def test_the_cheapest_is_chosen_among_equals_alone(
    ended: tuple[Folder, list[Record]], prefer: Any, ratio: float
) -> None:
    folder, records = ended
    config = Config(recipe="small", sweep=SweepConfig(prefer=prefer))
    outcome = Outcome(config=config, folder=folder, axes=AXES, metric="val/macro_accuracy", records=records)
    outcome.write()
    assert folder.read_json("best.json")["model.mask_ratio"] == ratio
    assert outcome.result()["best"]["changes"] == {"model.mask_ratio": ratio}
    assert outcome.result()["winner"]["changes"] == {"model.mask_ratio": 0.5}
    assert [one["changes"] for one in outcome.result()["tied"]] == [{"model.mask_ratio": 0.6}]
    lines = "\n".join(outcome.closing())
    assert "1 of 2 other points can't be told from the winner" in lines
    assert ("cheapest of these: model.mask_ratio=0.6" in lines) == (prefer == "cheap")

    assert "winner" in folder.read_bytes("sweep.md").decode()


def test_many_comparisons_are_corrected_for_their_number(ended: tuple[Folder, list[Record]]) -> None:
    folder, records = ended
    alone = standings([records[0], records[1]], folder, "single")[records[1].key].p
    together = standings(records, folder, "single")[records[1].key].p
    assert alone == together, "the largest of the p-values is not raised by smaller ones"
    first = standings([records[0], records[2]], folder, "single")[records[2].key].p
    both = standings(records, folder, "single")[records[2].key].p
    assert first is not None
    assert both == pytest.approx(2 * first)


def test_trials_without_predictions_are_not_compared(tmp_path: Path) -> None:
    folder, records = Folder(str(tmp_path)), [record(0.5, 0.9), record(0.6, 0.8)]
    assert standings(records, folder, "single") == {}
    predict(folder, records[1].key, {1})
    assert standings(records, folder, "single") == {}, "the winner has none"
    assert tied(records, {}) == [records[0]]
    assert tied([replace(records[0], status="stopped")], {}) == []


def test_other_classes_of_a_point_have_no_probability(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    predict(folder, "a", {1, 2})
    predict(folder, "b", {1, 2}, ["airport", *CLASSES])
    tables, names = read_predictions(folder, ["a", "b", "missing"])
    assert names == ["airport", *CLASSES]
    assert tables["a"]["probabilities"].to_pylist() == tables["b"]["probabilities"].to_pylist()
