"""The labels, folds and splits in a table, as they are written by people."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raymae.datasets.labels import SEPARATOR, stripped
from raymae.datasets.tables.locate import EXAMPLES, reject
from raymae.datasets.tables.settings import TableSettings

USUAL = {
    "train": ("train", "training", "tr", "fit"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("testing", "eval", "evaluation", "evaluate", "holdout"),
    "pool": ("pool", "unlabelled", "unlabeled", "pretrain", "pre-training"),
}
"""Usual names of each split."""


def with_labels(name: str, rows: pa.Table, settings: TableSettings) -> pa.Table:
    """Write the labels without outer blanks and with `SEPARATOR` between the classes."""
    separator = settings.separator
    if separator != SEPARATOR:
        taken = pc.match_substring(rows["scene_label"], SEPARATOR)
        right = f"have no {SEPARATOR!r} within a class, where data.label_separator is {separator!r}"
        reject(name, rows, pc.fill_null(taken, False), "scene_label", right, settings.label)
    labels = stripped(rows["scene_label"], separator)
    return rows.set_column(rows.column_names.index("scene_label"), "scene_label", labels)


def with_folds(name: str, rows: pa.Table, settings: TableSettings) -> pa.Table:
    """Strip the folds of outer blanks; ValueError for a clip without one, or with a split beside it."""
    folds = stripped(rows["fold"])
    reject(name, rows, pc.is_null(folds), "fold", "name the clip's fold", settings.fold)
    if "split" in rows.column_names:
        right = f"be empty, as data.fold_column = {settings.fold} decides the split: leave one of the two out"
        reject(name, rows, pc.is_valid(rows["split"]), "split", right)
        rows = rows.drop_columns("split")
    rows = rows.append_column("split", pa.nulls(len(rows), pa.string()))
    return rows.set_column(rows.column_names.index("fold"), "fold", folds)


def meant(name: str) -> str | None:
    """The split that a name likely stands for: `val` for Validation, `test_b` for Test_B; None if unknown."""
    lower = name.strip().lower()
    usual = next((split for split, names in USUAL.items() if lower in names), None)
    return usual or (lower if lower.startswith("test") else None)


def check_splits(name: str, rows: pa.Table) -> None:
    """Raise ValueError for a split that is not train, val, pool or test…; its message says which one to write."""
    split = pc.fill_null(rows["split"], "train")
    known = pc.match_substring_regex(split, "^(train|val|pool|test.*)$")
    unknown = [one for one in pc.unique(split.filter(pc.invert(known))).to_pylist() if meant(one)]
    hints = ", ".join(f"{meant(one)} for {one!r}" for one in unknown[:EXAMPLES])
    right = "be train, val, pool (pre-training only) or begin with test"
    reject(name, rows, pc.invert(known), "split", f"{right}; write {hints}" if hints else right)
