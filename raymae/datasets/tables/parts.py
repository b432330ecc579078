"""Rows that name a part of a recording: columns start_seconds and end_seconds, of which one may be empty."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.datasets.tables.locate import reject

PARTS = ("start_seconds", "end_seconds")
FIELDS = [pa.field(name, pa.float64()) for name in PARTS]
NUMBER = r"^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$"


def check_names(table: str, rows: pa.Table, column: str) -> None:
    """Raise ValueError for a row without a filename, and for one with the file, and part of it, of an earlier row.

    `column` is the table's name of the column filename.
    """
    reject(table, rows, pc.is_null(rows["filename"]), "filename", "name an audio file", column)
    names, right = rows["filename"], "be a name that no earlier row has"
    if has_parts(rows):
        names = pc.binary_join_element_wise(names, *(pc.fill_null(rows[name], "") for name in PARTS), "\0")
        right += " with this start_seconds and end_seconds"
    reject(table, rows, repeats(names), "filename", right, column)


def with_parts(table: str, rows: pa.Table) -> pa.Table:
    """Read the columns of parts as numbers, and give parts a clip_id of their own and a group, by default the file.

    A table without parts loses the columns. Raises ValueError for what is no number, and for an end before its start.
    """
    if not has_parts(rows):
        kept = [name for name in rows.column_names if name not in PARTS]
        return rows.select(kept).append_column("clip_id", rows["filename"])
    texts = {name: pc.utf8_trim_whitespace(rows[name]) for name in PARTS}
    for name, text in texts.items():
        wrong = pc.invert(pc.match_substring_regex(pc.fill_null(text, "0"), NUMBER))
        reject(table, rows, wrong, name, "be a number of seconds, 0 or more")
    start, end = (pc.cast(text, pa.float64()) for text in texts.values())
    before = pc.fill_null(pc.less_equal(end, pc.fill_null(start, 0.0)), False)
    reject(table, rows, before, "end_seconds", "be more than start_seconds")
    is_part = pc.or_(pc.is_valid(start), pc.is_valid(end))
    name = rows["filename"]
    part = pc.binary_join_element_wise(name, pc.fill_null(texts[PARTS[0]], "0"), "@")
    part = pc.binary_join_element_wise(part, pc.fill_null(texts[PARTS[1]], ""), "-")
    group = pc.coalesce(rows["group"], pc.if_else(is_part, name, pa.scalar(None, pa.string())))
    for column, values in (*zip(PARTS, (start, end), strict=True), ("group", group)):
        rows = rows.set_column(rows.column_names.index(column), column, values)
    return rows.append_column("clip_id", pc.if_else(is_part, part, name))


def has_parts(rows: pa.Table) -> bool:
    """Whether a row names a part of its file."""
    return any(name in rows.column_names and rows[name].null_count < len(rows) for name in PARTS)


def repeats(values: pa.ChunkedArray) -> pa.Array:
    """Mask (n,) of the rows whose value occurs in an earlier row."""
    first = pc.index_in(values, value_set=values).to_numpy()
    return pa.array(first < np.arange(len(first)))
