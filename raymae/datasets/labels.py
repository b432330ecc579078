"""Parse `scene_label` into lists of classes and into a target matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array, vstack

Labels = Literal["single", "multi"]
"""single: one class per clip; multi: any number of classes per clip, joined by `SEPARATOR`."""

SEPARATOR = ";"
PART = 65_536
"""Clips whose labels are taken apart at once."""


def probability_columns(class_names: Sequence[str]) -> list[str]:
    """The columns of probabilities in flat tables, `p_<class>`: no class can have the name of another column."""
    return [f"p_{name}" for name in class_names]


def stripped(texts: pa.ChunkedArray, separator: str | None = None) -> pa.ChunkedArray:
    """Texts (n,) without outer blanks, null where nothing is left; given a `separator`, its parts, by `SEPARATOR`."""
    if separator is None:
        joined = pc.utf8_trim_whitespace(texts)
    else:
        parts = pc.split_pattern(texts.combine_chunks(), separator)
        values = pc.utf8_trim_whitespace(parts.values)
        lists = pa.ListArray.from_arrays(parts.offsets, values, mask=pc.is_null(parts))
        joined = pa.chunked_array([pc.binary_join(lists, SEPARATOR)])
    return pc.if_else(pc.equal(joined, ""), pa.scalar(None, pa.string()), joined)


def label_lists(scene_label: pa.ChunkedArray, labels: Labels) -> pa.ListArray:
    """The classes of every clip (n,), in the order of the text; null for an unlabelled clip.

    With `multi`, whitespace around a class is stripped; an empty part is kept as an empty class.
    """
    column = scene_label.combine_chunks()
    if labels == "multi":
        parts = pc.split_pattern(column, SEPARATOR)
        return pa.ListArray.from_arrays(parts.offsets, pc.utf8_trim_whitespace(parts.values), mask=pc.is_null(column))
    ends = np.append(0, np.cumsum(pc.is_valid(column).to_numpy(zero_copy_only=False)))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), column.drop_null(), mask=pc.is_null(column))


def class_set(scene_label: pa.ChunkedArray, labels: Labels) -> list[str]:
    """The distinct classes of some clips, sorted."""
    parts = (pc.unique(label_lists(part, labels).flatten()).to_pylist() for part in _parts(scene_label))
    return sorted(set().union(*parts))


def target_matrix(scene_label: pa.ChunkedArray, class_names: Sequence[str], labels: Labels) -> csr_array:
    """Multi-hot targets (n, C), 1 for each class of a clip; the row of an unlabelled clip is empty.

    A class given twice counts once. Sparse, as AudioSet has 527 classes and about 3 per clip. Raises ValueError for a
    class that is not in `class_names`.
    """
    found = [_targets(label_lists(part, labels), class_names) for part in _parts(scene_label)]
    return csr_array(vstack(found, format="csr")) if len(found) > 1 else found[0]


def _parts(scene_label: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """Neighbouring clips; the labels of all of two million clips, taken apart, would be hundreds of MB."""
    yield from (scene_label.slice(start, PART) for start in range(0, max(1, len(scene_label)), PART))


def _targets(lists: pa.ListArray, class_names: Sequence[str]) -> csr_array:
    columns = pc.index_in(lists.flatten(), pa.array(class_names, pa.string()))
    if columns.null_count:
        unknown = lists.flatten().filter(pc.is_null(columns))[0].as_py()
        raise ValueError(f"scene_label {unknown!r} is not one of the classes {', '.join(class_names)}")
    rows = pc.list_parent_indices(lists).to_numpy()
    ones = np.ones(len(rows), np.float32)
    matrix = csr_array((ones, (rows, columns.to_numpy())), shape=(len(lists), len(class_names)))
    matrix.data[:] = 1  # duplicates were summed
    return matrix
