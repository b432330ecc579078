"""The columns of a table: which of them are used, and hints where one is missing."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from raymae.config import nearest

MOST_NAMES = 20
"""Columns that a message names."""
FILES = ("file", "path", "audio", "fname", "slice_file_name", "id")
LABELS = ("label", "labels", "class", "classes", "class_name", "category", "scene", "scene_label")
"""Usual names of the columns that hold filenames and labels."""


def some(names: Iterable[str]) -> str:
    """The first of many names, for messages."""
    first, rest = list(islice(names := iter(names), MOST_NAMES)), sum(1 for _ in names)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def like(header: Iterable[str], wanted: str, usual: Sequence[str]) -> str | None:
    """The first column that is likely meant by `wanted`: similar to it, or a usual name; None if there is none."""
    names = {name: name.strip().lower() for name in header}
    near = difflib.get_close_matches(wanted.lower(), list(names.values()), n=1, cutoff=0.5)
    return next((name for name, lower in names.items() if lower in usual or lower in near), None)


def label_column(header: Iterable[str], other: str) -> str | None:
    """The first column but `other` that is likely to hold the labels; None if there is none."""
    return next((name for name in header if name.strip().lower() in LABELS and name != other), None)


def no_filenames(name: str, header: Sequence[str], column: str, own: bool) -> ValueError:
    """The error for a table without its column of filenames; with `own` it names the options `data.*`."""
    meant = like(header, column, FILES)
    hint = f"; rename {meant!r}?" if meant else ""
    if own and meant:
        hint = (
            f"; rename {meant!r}, or give --data.filename-column {shlex.quote(meant)} (and --data.filename-suffix .wav "
            "where its names have no extension)"
        )
    elif own:
        hint = "; --data.filename-column names another one"
    if len(header) == 1 and "|" in header[0]:
        hint = "; separate them by commas, tabs or semicolons"
    return ValueError(f"{name} has no column {column}; its columns are {some(map(repr, header))}{hint}")


def no_column(name: str, header: Sequence[str], column: str, label: bool) -> ValueError:
    """The error for a table without another required column; for one of labels it names the option."""
    meant = like(header, column, LABELS) if label else None
    hint = f"; --data.label-column {shlex.quote(meant)}?" if meant else nearest(column, header)
    return ValueError(f"{name} has no column {column}; its columns are {some(map(repr, header))}{hint}")


def repeated(header: Sequence[str], columns: Iterable[str]) -> list[str]:
    """The `columns` that a header holds more than once, sorted."""
    counts = Counter(header)
    return sorted(name for name in columns if counts[name] > 1)
