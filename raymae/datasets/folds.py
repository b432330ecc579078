"""Folds of a table: one of them is split test, the others are train."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc


def fold_names(rows: pa.Table) -> list[str]:
    """The folds in column fold, numbers in them by their value: 2 before 10."""
    names = pc.unique(rows["fold"]).to_pylist()
    return sorted(names, key=lambda name: [(part.isdecimal(), part.zfill(20)) for part in re.split(r"(\d+)", name)])


def with_test_fold(rows: pa.Table, fold: str) -> pa.Table:
    """The rows, those of `fold` in split test and the others in train; ValueError for a fold that no row has."""
    names = fold_names(rows)
    if fold not in names:
        raise ValueError(f"data.test_fold = {fold!r} is not a fold of the tables; they have {', '.join(names)}")
    split = pc.if_else(pc.equal(rows["fold"], fold), "test", "train")
    return rows.set_column(rows.column_names.index("split"), "split", split)
