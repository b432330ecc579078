"""Generated predictions of models, and finished evaluations of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import to_dict
from raymae.evaluation.verdict import verdict
from raymae.pipeline.evaluate import score_predictions
from raymae.storage.folder import Folder


def finish(folder: Folder, share: float, seed: int, split: str = "visit, seed 0", drop: int = 0) -> Folder:
    """A finished evaluation without pages, of two models; the second one is right with probability `share`."""
    tables = {"cnn": make_guesses(0.5, 9), "student": make_guesses(share, seed)}
    tables = {name: table.slice(drop) for name, table in tables.items()}
    extra = {"split": split, "note": None, "train_seconds": dict.fromkeys(tables, 1.0), "val_chose": []}
    found = (
        score_predictions(tables, NAMES, "single", tables["cnn"])
        | extra
        | {"quarantined": {}, "silent": {}, "clips": None, "embeddings": None}
    )
    for name, table in tables.items():
        folder.write_table(f"predictions/{name}.parquet", table)
    report = dict(to_dict(found))
    folder.write_json("report.json", report)
    folder.finish(report)
    return folder


NAMES = ["bus", "park", "tram"]

MADE: dict[str, Any] = {
    "run": "small-evaluate-0123456789abcdef",
    "recipe": "small",
    "job": "evaluate",
    "date": "2025-05-01T10:20+00:00",
    "command": "python jobs/evaluate.py small",
    "versions": {"python": "3.11.9", "raymae": "0.1.0"},
    "clips": {"val": {"clips": 90, "labelled": 90, "groups": 18, "devices": 2, "cities": 1, "hours": None}},
}
"""What an evaluation was made of (`pipeline.report_facts.made`)."""


def judged(found: Mapping[str, Any]) -> dict[str, Any]:
    """A scored result with its verdict, as a report is written from."""
    return dict(to_dict({"verdict": verdict(found), "made": MADE, **found}))


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


def make_guesses(share: float, seed: int) -> pa.Table:
    """Predictions of a model that is right with probability `share`, in three splits and train, with four devices."""
    rng = np.random.default_rng(seed)
    rows = [("train", name, device, f"t{name}", name) for name in NAMES for device in "ab"]
    for split, devices in {"val": "ab", "test_seen": "ab", "test_unseen": ("s4", "s5")}.items():
        for number in range(90):
            truth = NAMES[number % 3]
            guess = truth if rng.random() < share else NAMES[rng.integers(3)]
            rows.append((split, truth, devices[number // 3 % 2], f"g{number // 5}", guess))
    table = make_predictions(rows)
    return table.append_column("path", pc.binary_join_element_wise("rec", table["clip_id"], "/"))


MODELS = ("svm", "svm_robust", "cnn", "student")

PREDICTIONS = {name: make_guesses(0.3 + 0.1 * k, k) for k, name in enumerate(MODELS)}
