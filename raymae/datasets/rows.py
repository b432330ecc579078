"""Select rows of a clip table by split and label; its groups, class names and fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.datasets.labels import Labels, class_set

FILE = ("clip_id", "size", "mtime", "content", "start_seconds", "end_seconds")
"""Columns that name a part of a recording and its state; clips without files, as in a benchmark, don't have all."""


def state_columns(clips: pa.Table) -> list[str]:
    """The columns that name a recording and its state, of those that a table has."""
    return [name for name in FILE if name in clips.column_names]


def fingerprint(clips: pa.Table, columns: Sequence[str]) -> str:
    """Hash (16 hex digits) of the content and order of some columns, by parts that take little memory as objects."""
    import pandas as pd

    state = hashlib.sha256()
    for batch in clips.select(list(columns)).to_batches(max_chunksize=65_536):
        state.update(pd.util.hash_pandas_object(batch.to_pandas(), index=False).to_numpy().tobytes())
    return state.hexdigest()[:16]


def clips_of(clips: pa.Table, splits: Sequence[str]) -> pa.Table:
    """Clips of the splits whose name begins with one of `splits`, so that "test" selects all test… splits."""
    masks = [pc.starts_with(clips["split"], split) for split in splits]
    mask = masks[0]
    for other in masks[1:]:
        mask = pc.or_(mask, other)
    return clips.filter(mask)


def group_ids(clips: pa.Table) -> pa.ChunkedArray:
    """The group of each clip (n,); its clip_id where it has none, as such a clip is a group of its own."""
    return pc.coalesce(clips["group"], clips["clip_id"])


Rows = NDArray[np.int64]


def held_out(clips: pa.Table) -> dict[str, pa.Table]:
    """The labelled clips of each held-out split: val first, then test…"""
    labelled = clips.filter(pc.is_valid(clips["scene_label"]))
    splits = sorted(
        (name for name in labelled["split"].unique().to_pylist() if name == "val" or name.startswith("test")),
        key=lambda name: (name != "val", name),
    )
    return {name: labelled.filter(pc.equal(labelled["split"], name)) for name in splits}


def find_rows(mask: pa.ChunkedArray) -> Rows:
    """The row numbers where an Arrow mask is true."""
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy()).astype(np.int64)


def rows_of(clips: pa.Table, prefix: str, *, labelled: bool | None = None) -> Rows:
    """Row numbers of the splits whose name begins with `prefix`: all (None), labelled (True) or unlabelled (False)."""
    mask = pc.starts_with(clips["split"], prefix)
    if labelled is not None:
        mask = pc.and_(mask, pc.is_valid(clips["scene_label"]) if labelled else pc.is_null(clips["scene_label"]))
    return find_rows(mask)


def unlabelled_rows(clips: pa.Table) -> Rows:
    """Row numbers of the unlabelled training clips."""
    return rows_of(clips, "train", labelled=False)


def class_names(clips: pa.Table, labels: Labels = "single") -> list[str]:
    """The classes of the labelled training clips, sorted."""
    return class_set(clips["scene_label"].take(rows_of(clips, "train", labelled=True)), labels)
