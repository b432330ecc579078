"""ESC-50 and its subset ESC-10: 5-second clips of environmental sounds in five folds, as in the folder ESC-50-master.

It holds `audio/*.wav` and `meta/esc50.csv` (`filename,fold,target,category,esc10,src_file,take`). Clips of equal
`src_file` were cut from one recording of Freesound.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.published.official import clip_rows, read_csv, recordings_in, root_of, warn_of_extra, with_folds
from raymae.datasets.tables.locate import locate, reject

CSV = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")


def loader(dataset: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of esc50 or esc10."""
    return lambda config, folder: read(config, dataset)


def read(config: DataConfig, dataset: str) -> pa.Table:
    """`ROWS`: `data.test_fold` is split test, the other folds are train; group is the recording of Freesound.

    Missing recordings have size -1. Raises ValueError for a folder without the CSV, for rows that contradict their
    filename or have no class, and for an unknown fold.
    """
    root = root_of(config)
    name = redact((root / CSV).url)
    rows = read_csv(root, CSV, COLUMNS)
    check(name, rows)
    extra = set(recordings_in(root, "audio")).difference(f"audio/{clip}" for clip in rows["filename"].to_pylist())
    warn_of_extra(redact(root.url), extra)
    if dataset == "esc10":
        rows = rows.filter(pc.equal(rows["esc10"], "True"))
    rows = rows.append_column("clip_id", rows["filename"])
    rows = rows.rename_columns({"category": "scene_label", "src_file": "group"})
    paths = pc.binary_join_element_wise("audio", rows["filename"], "/")
    rows = rows.set_column(rows.schema.get_field_index("filename"), "filename", paths)
    return clip_rows(locate(name, root, with_folds(dataset, rows, config)), dataset)


def check(name: str, rows: pa.Table) -> None:
    """Raise ValueError for rows without a class, and for those that contradict their filename."""
    reject(name, rows, pc.is_null(rows["category"]), "category", "be a class")
    parts = pc.binary_join_element_wise(*(rows[part] for part in ("fold", "src_file", "take", "target")), "-")
    differ = pc.not_equal(pc.fill_null(pc.binary_join_element_wise(parts, "wav", "."), ""), rows["filename"])
    reject(name, rows, differ, "filename", "be fold-src_file-take-target.wav of the row")
    known = pc.is_in(rows["esc10"], value_set=pa.array(["True", "False"]))
    reject(name, rows, pc.invert(known), "esc10", "be True or False")
