"""Generated clip tables, and the published tables of CAS 2023 and TAU where they are available."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from raymae.datasets.tables.table import ROWS
from tests.support.paths import SHARED

METADATA = SHARED / "data/metadata"
RECORDED = pa.field("recorded", pa.timestamp("s"))
START = datetime(2023, 6, 1)


def clip_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A clip table (`ROWS` and `recorded`) of rows with any of its columns, the others filled with defaults."""
    full = [
        {"clip_id": f"c{n}", "path": f"/c{n}", "split": "train", "source": "t", "weight": 1.0, "size": 1, "mtime": 0.0}
        | {"row": n + 2}
        | row
        for n, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(full, ROWS.append(RECORDED))


def random_table(seed: int, sessions: int = 40, classes: int = 4, **given: Any) -> pa.Table:
    """Sessions of one to five clips in several cities, devices and days; some unlabelled, some pool, some ungrouped."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(sessions):
        city = f"city{rng.integers(3)}"
        at = START + timedelta(minutes=int(rng.integers(6000)))
        label, split = f"class{number % classes}", "pool" if rng.random() < 0.1 else "train"
        for _ in range(rng.integers(1, 6)):
            known = split == "train" and rng.random() < 0.7
            ungrouped = rng.random() < 0.05
            row = {"city": city, "recorded": None if ungrouped else at, "device": f"d{rng.integers(4)}", "split": split}
            row |= {"group": None if ungrouped else f"{city} {number}", "scene_label": label if known else None}
            rows.append(row | given)
    return clip_table(rows)


def cas2023() -> pa.Table:
    """The development clips of CAS 2023 as a clip table; group is the session."""
    frame = pd.read_csv(METADATA / "cas2023/APSIPA2025_GC_ASC_dev_metadata.csv", encoding="utf-8-sig")
    frame["recorded"] = pd.to_datetime(frame["record_time"])
    rows = [
        {"clip_id": clip, "path": clip, "city": city, "group": f"{city} {time}", "recorded": at.to_pydatetime()}
        | {"scene_label": label if isinstance(label, str) else None}
        for clip, city, time, at, label in frame[
            ["filename", "location", "record_time", "recorded", "scene_label"]
        ].itertuples(index=False)
    ]
    return clip_table(rows)


def tau2020() -> pa.Table:
    """The training clips of TAU 2020 Mobile as a clip table; group is the location."""
    frame = pd.read_csv(METADATA / "tau2020_mobile/fold1_train.csv", sep="\t")
    rows = []
    for filename, label in frame.itertuples(index=False):
        _, city, location, _, device = Path(filename).stem.split("-")
        rows.append(
            {"clip_id": filename, "city": city, "device": device, "group": f"{city}-{location}", "scene_label": label}
        )
    return clip_table(rows)
