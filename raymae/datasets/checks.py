"""Checks of a clip table: missing files, groups across splits, labels."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig
from raymae.datasets.labels import SEPARATOR, Labels, class_set, label_lists
from raymae.datasets.rows import held_out
from raymae.datasets.tables.header import label_column
from raymae.datasets.tables.locate import EXAMPLES
from raymae.datasets.tables.parts import PARTS, repeats
from raymae.datasets.tables.settings import TableSettings
from raymae.datasets.tables.table import MetadataTable

log = logging.getLogger(__name__)


def check_files(rows: pa.Table, max_bad_share: float) -> None:
    """Raise ValueError when two rows share a file, or when too many files are missing."""
    repeated = repeats(parts_of(rows))
    for second in rows.filter(repeated).slice(0, 1).to_pylist():
        first = rows.filter(pc.equal(rows["path"], second["path"])).slice(0, 1).to_pylist()[0]
        more = f" (and {pc.sum(repeated).as_py() - 1} more)" if pc.sum(repeated).as_py() > 1 else ""
        raise ValueError(
            f"{place(first)} and {place(second)}, column filename: both are the file {second['path']}{more}; "
            "every recording should occur once"
        )
    missing = rows.filter(pc.less(rows["size"], 0))
    if len(missing) > max_bad_share * len(rows):
        examples = ", ".join(f"{place(row)}: {row['path']}" for row in missing.slice(0, EXAMPLES).to_pylist())
        more = f" and {len(missing) - EXAMPLES} more" if len(missing) > EXAMPLES else ""
        are_here = all(map(os.path.isfile, missing.slice(0, EXAMPLES)["clip_id"].to_pylist()))
        here = "; the working directory has them: --data.audio-root ." if are_here else ""
        raise ValueError(
            f"{len(missing)} of {len(rows)} files are missing, more than data.max_bad_share = {max_bad_share}; "
            "filenames are relative to their table's folder, or to --data.audio-root, and keep their extension, or get "
            f"it by --data.filename-suffix: {examples}{more}{here}"
        )


def parts_of(rows: pa.Table) -> pa.ChunkedArray:
    """What each row reads (n,): its file, and the part of it that it names."""
    texts = [pc.fill_null(pc.cast(rows[name], pa.string()), "") for name in PARTS if name in rows.column_names]
    return pc.binary_join_element_wise(rows["path"], *texts, "\0") if texts else rows["path"]


def check_groups(rows: pa.Table, *, transductive: bool = False) -> None:
    """Raise ValueError when a group has clips to train on and clips to evaluate on, which would inflate the score.

    With `transductive`, clips of split pool may come from evaluation groups.
    """
    grouped = rows.filter(pc.is_valid(rows["group"]))
    if transductive:
        grouped = grouped.filter(pc.not_equal(grouped["split"], "pool"))
    tested_on = evaluated(grouped)
    leaks = pc.and_(tested_on, pc.is_in(grouped["group"], value_set=grouped.filter(pc.invert(tested_on))["group"]))
    groups = pc.unique(grouped.filter(leaks)["group"])
    if len(groups):
        members = grouped.filter(pc.equal(grouped["group"], groups[0]))
        inside = evaluated(members)
        tested, trained = (members.filter(mask).slice(0, 1).to_pylist()[0] for mask in (inside, pc.invert(inside)))
        more = f" (and {len(groups) - 1} more groups)" if len(groups) > 1 else ""
        raise ValueError(
            f"column group: {groups[0].as_py()!r}{more} is in {trained['split']} ({place(trained)}) and in "
            f"{tested['split']} ({place(tested)}): a group should be on one side only, or it leaks into the score; "
            "mend column split, or let --data.split.kind session divide whole groups"
        )


def unlabelled_hint(rows: pa.Table, config: DataConfig) -> str:
    """The end of a message that there are no labels: the option that names the column that likely holds them."""
    if config.dataset != "table" or rows["scene_label"].null_count < len(rows):
        return ""
    for folder in (Path(url) for url in config.tables if os.path.isdir(url)):
        inside = sorted(one for pattern in ("*.csv", "*.parquet") for one in folder.glob(pattern))
        if inside:
            likely = next((one for one in inside if "meta" in one.name.lower()), inside[0])
            more = f" (or another of its {len(inside)} tables)" if len(inside) > 1 else ""
            return f"; {folder} is a folder, name the table in it: --data.tables {shlex.quote(str(likely))}{more}"
    tables = (MetadataTable.open(url, settings=TableSettings.of(config)) for url in config.tables)
    column = next(filter(None, (label_column(table.header(), config.label_column) for table in tables)), None)
    return f"; --data.label-column {shlex.quote(column)} reads the labels from column {column!r}" if column else ""


def check_labels(rows: pa.Table, labels: Labels, hint: str = "") -> None:
    """Raise ValueError when no classifier can be trained or evaluated on `rows` (`ROWS`), scene_label read as `labels`.

    `hint` is the end of the message that there are no labels.
    Causes: no labelled training clip; a label that doesn't fit `labels`; a held-out class without a training clip; a
    single class.
    """
    labelled = rows.filter(pc.is_valid(rows["scene_label"]))
    check_parts(labelled, labels)
    train_classes = class_set(labelled.filter(pc.equal(labelled["split"], "train"))["scene_label"], labels)
    if not train_classes:
        raise ValueError(
            "no clip of split train has a scene_label, so there is nothing to train a classifier on; "
            f"jobs/pretrain.py needs no labels{hint}"
        )
    if labels == "multi" and len(train_classes) == 1:
        raise ValueError(
            f"column scene_label: {train_classes[0]!r} is the only class of the training clips; an empty label means "
            "unlabelled, so clips without any of the classes need a class of their own"
        )
    lists = label_lists(labelled["scene_label"], labels)
    unknown = pc.invert(pc.is_in(lists.flatten(), value_set=pa.array(train_classes, pa.string())))
    if pc.any(unknown).as_py():
        names = pc.unique(lists.flatten().filter(unknown)).to_pylist()
        examples = ", ".join(map(repr, names[:EXAMPLES])) + (", …" if len(names) > EXAMPLES else "")
        clips = labelled.take(pc.unique(pc.list_parent_indices(lists).filter(unknown)))
        first = clips.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"column scene_label: {examples} in {len(clips)} held-out clips (first {place(first)}, {first['clip_id']}, "
            f"split {first['split']}) without any clip in training; labels there: {', '.join(train_classes)}; label "
            "training clips of every class, or leave those clips out"
        )
    if labels == "single" and len(train_classes) == 1:
        raise ValueError(
            f"column scene_label: {train_classes[0]!r} is the only class of the training clips, and a classifier needs "
            "at least two; jobs/pretrain.py needs no labels"
        )


def check_held_out(rows: pa.Table, scored: bool) -> None:
    """Log what follows from a missing val or test; ValueError if models are to be `scored` and both are missing."""
    names = [name for name in held_out(rows) if name != "val"]
    has_val = "val" in held_out(rows)
    if scored and not has_val and not names:
        raise ValueError(
            "nothing to evaluate on: no clip of a split val or test… has a scene_label; --data.split.kind session "
            "holds a fifth of the recordings (column group) out for test, and others for val"
        )
    if not has_val:
        log.warning(
            "split val has no labelled clip: each training keeps its last weights, as nothing says which were best"
            "%s", "; --data.split.val-share 0.1 draws one" if names else "",
        )  # fmt: skip
    if scored and not names:
        log.warning(
            "no split test… has a labelled clip: the only scores are those of val, which trainings may select their "
            "weights by, so they are too high for new recordings; --data.split.kind session draws a test split"
        )


def check_parts(labelled: pa.Table, labels: Labels) -> None:
    """Raise ValueError for several classes in a single-label scene_label, or an empty class in a multi-label one."""
    lists = label_lists(labelled["scene_label"], "multi")
    if labels == "single":
        wrong = pc.greater(pc.list_value_length(lists), 1)
        right = f"be one class; --finetune.labels multi splits it into classes at {SEPARATOR!r}"
    else:
        empty = pc.list_parent_indices(lists).filter(pc.equal(lists.flatten(), ""))
        wrong = pc.is_in(pa.array(range(len(lists)), pa.int64()), value_set=empty)
        right = f"have a class on either side of every {SEPARATOR!r}"
    bad = labelled.filter(wrong)
    if len(bad):
        first = bad.slice(0, EXAMPLES).to_pylist()
        examples = ", ".join(f"{place(row)}: {row['scene_label']!r}" for row in first)
        more = f" and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
        raise ValueError(f"column scene_label, {examples}{more}: should {right}")


def evaluated(rows: pa.Table) -> pa.ChunkedArray:
    """Mask (n,) of the rows in a split that is evaluated on: val or test…"""
    return pc.or_(pc.equal(rows["split"], "val"), pc.starts_with(rows["split"], "test"))


def place(row: dict[str, object]) -> str:
    """Table and row number of a row, for messages."""
    return f"{row['source']} row {row['row']}"
