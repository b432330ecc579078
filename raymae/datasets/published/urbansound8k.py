"""UrbanSound8K: clips of up to 4 seconds of ten classes of urban sounds, in ten folds.

The folder holds `audio/fold1/` to `audio/fold10/` and `metadata/UrbanSound8K.csv`
(`slice_file_name,fsID,start,end,salience,fold,classID,class`). Clips of equal `fsID` were cut from one recording of
Freesound.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.published.official import clip_rows, read_csv, recordings_in, root_of, warn_of_extra, with_folds
from raymae.datasets.tables.locate import locate, reject

CSV = "metadata/UrbanSound8K.csv"
COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")


def load(config: DataConfig, folder: Path | None) -> pa.Table:
    """`ROWS`: `data.test_fold` is split test, the other folds are train; group is the recording of Freesound.

    Missing recordings have size -1. Raises ValueError for a folder without the CSV, for rows that contradict their
    filename or have no class or fold, and for an unknown fold.
    """
    root = root_of(config)
    name = redact((root / CSV).url)
    rows = read_csv(root, CSV, COLUMNS)
    check(name, rows)
    place = pc.binary_join_element_wise("audio/fold", rows["fold"], "")
    paths = pc.binary_join_element_wise(place, rows["slice_file_name"], "/")
    warn_of_extra(redact(root.url), set(recordings_in(root, "audio")).difference(paths.to_pylist()))
    rows = rows.rename_columns({"slice_file_name": "clip_id", "fsID": "group", "class": "scene_label"})
    rows = with_folds("urbansound8k", rows.append_column("filename", paths), config)
    return clip_rows(locate(name, root, rows), "urbansound8k")


def check(name: str, rows: pa.Table) -> None:
    """Raise ValueError for rows without class or fold, and for those that contradict their filename."""
    reject(name, rows, pc.is_null(rows["class"]), "class", "be a class")
    number = pc.fill_null(pc.match_substring_regex(rows["fold"], "^[0-9]+$"), False)
    reject(name, rows, pc.invert(number), "fold", "be the number of a fold")
    start = pc.binary_join_element_wise(rows["fsID"], rows["classID"], "", "-")
    given = pc.replace_substring_regex(rows["slice_file_name"], r"[0-9]+-[0-9]+\.wav$", "")
    differ = pc.not_equal(pc.fill_null(start, ""), given)
    reject(name, rows, differ, "slice_file_name", "be fsID-classID-occurrence-slice.wav of the row")
