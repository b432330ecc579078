"""The clips of a run: data sets by name, pool tables for any of them, and what must hold between their rows.

A data set is a function from its settings and a folder for what it writes itself (None where the storage is no local
folder) to rows with the columns of `ROWS`. To add one, write `datasets/<name>.py` and a line in `DATASETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig
from raymae.datasets import synthetic
from raymae.datasets.locate import EXAMPLES
from raymae.datasets.table import CLIPS, ROWS, read_table, repeats

__all__ = ["CLIPS", "DATASETS", "ROWS", "check_labels", "load", "summary"]

log = logging.getLogger(__name__)


def load_synthetic(config: DataConfig, folder: Path | None) -> pa.Table:
    """The embedded data set; it is written into `folder` where it doesn't stand there yet."""
    if folder is None:
        raise ValueError("data.dataset = synthetic writes recordings: give a local folder as --storage, not a URL")
    return read_table(str(synthetic.write(folder, config.synthetic)))


def load_tables(config: DataConfig, folder: Path | None) -> pa.Table:
    """The user's own tables, together."""
    if not config.tables:
        raise ValueError("data.dataset = table needs --data.tables: CSV or Parquet files with a column filename")
    return join([read_table(url) for url in config.tables])


DATASETS: dict[str, Callable[[DataConfig, Path | None], pa.Table]] = {
    "synthetic": load_synthetic,
    "table": load_tables,
}


def load(config: DataConfig, folder: Path | None) -> pa.Table:
    """The clip table (`CLIPS`) of a run: its data set and its pool tables.

    Raises ValueError for an unknown data set, for what `read_table` rejects, for a file that two rows share, for a
    group with clips on both sides of the evaluation and when more files are missing than `max_bad_share` allows.
    """
    if config.dataset not in DATASETS:
        raise ValueError(f"data.dataset = {config.dataset!r} is unknown; valid: {', '.join(DATASETS)}")
    weights = config.pool_weights or (1.0,) * len(config.pool_tables)
    pools = [read_table(url, pool=True, weight=w) for url, w in zip(config.pool_tables, weights, strict=True)]
    rows = join([DATASETS[config.dataset](config, folder), *pools])
    check_files(rows, config.max_bad_share)
    check_groups(rows)
    return rows.select(CLIPS.names)


def join(tables: list[pa.Table]) -> pa.Table:
    """Tables one after the other; a later table whose clip_ids are taken gets its number in front of them."""
    rows = tables[0]
    for number, table in enumerate(tables[1:], start=1):
        clip_id = table["clip_id"]
        while pc.any(pc.is_in(clip_id, value_set=rows["clip_id"])).as_py():
            clip_id = pc.binary_join_element_wise(str(number), clip_id, "/")
        rows = pa.concat_tables([rows, table.set_column(0, "clip_id", clip_id)])
    return rows


def check_files(rows: pa.Table, max_bad_share: float) -> None:
    """ValueError when two rows share a file, or when too many files are missing."""
    again = repeats(rows["path"])
    for twice in rows.filter(again).slice(0, 1).to_pylist():
        first = rows.filter(pc.equal(rows["path"], twice["path"])).slice(0, 1).to_pylist()[0]
        more = f" (and {pc.sum(again).as_py() - 1} more)" if pc.sum(again).as_py() > 1 else ""
        raise ValueError(
            f"{place(first)} and {place(twice)}, column filename: both are the file {twice['path']}{more}; "
            "every recording should occur once"
        )
    missing = rows.filter(pc.less(rows["size"], 0))
    if len(missing) > max_bad_share * len(rows):
        examples = ", ".join(f"{place(row)}: {row['path']}" for row in missing.slice(0, EXAMPLES).to_pylist())
        more = f" and {len(missing) - EXAMPLES} more" if len(missing) > EXAMPLES else ""
        raise ValueError(
            f"{len(missing)} of {len(rows)} files are missing, more than data.max_bad_share = {max_bad_share}; "
            f"filenames are relative to their table's folder and keep their extension: {examples}{more}"
        )


def check_groups(rows: pa.Table) -> None:
    """ValueError when a group has clips to train on and clips to evaluate on: its score would be a leak's."""
    grouped = rows.filter(pc.is_valid(rows["group"]))
    held_out = evaluated(grouped)
    leaks = pc.and_(held_out, pc.is_in(grouped["group"], value_set=grouped.filter(pc.invert(held_out))["group"]))
    groups = pc.unique(grouped.filter(leaks)["group"])
    if len(groups):
        members = grouped.filter(pc.equal(grouped["group"], groups[0]))
        inside = evaluated(members)
        tested, trained = (members.filter(mask).slice(0, 1).to_pylist()[0] for mask in (inside, pc.invert(inside)))
        more = f" (and {len(groups) - 1} more groups)" if len(groups) > 1 else ""
        raise ValueError(
            f"column group: {groups[0].as_py()!r}{more} is in {trained['split']} ({place(trained)}) and in "
            f"{tested['split']} ({place(tested)}): a group should lie on one side, or its score is a leak's"
        )


def check_labels(clips: pa.Table) -> None:
    """ValueError when a classifier can't be trained or judged: no labelled training clip, or a held-out label without.

    Pre-training needs no labels, so `load` leaves this to its caller.
    """
    labelled = clips.filter(pc.is_valid(clips["scene_label"]))
    taught = pc.unique(labelled.filter(pc.equal(labelled["split"], "train"))["scene_label"])
    if not len(taught):
        raise ValueError(
            "no clip of split train has a scene_label, so there is nothing to train a classifier on; "
            "jobs/pretrain.py needs no labels"
        )
    unknown = labelled.filter(pc.invert(pc.is_in(labelled["scene_label"], value_set=taught)))
    if len(unknown):
        names = pc.unique(unknown["scene_label"]).to_pylist()
        examples = ", ".join(map(repr, names[:EXAMPLES])) + (", …" if len(names) > EXAMPLES else "")
        clip = unknown.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"column scene_label: {examples} in {len(unknown)} held-out clips (first {clip['source']}, "
            f"{clip['clip_id']}, split {clip['split']}) without any clip in training; labels there: "
            f"{', '.join(sorted(taught.to_pylist()))}"
        )


def summary(clips: pa.Table) -> list[str]:
    """Lines that say what a clip table holds: a small table by split, the classes, files that will be quarantined."""
    counted = ("scene_label", "city", "device", "group")
    wanted = [("clip_id", "count"), ("scene_label", "count"), *((name, "count_distinct") for name in counted)]
    counts = clips.group_by("split").aggregate(wanted).select(["split", *("_".join(item) for item in wanted)])
    order = {"train": 0, "val": 1, "pool": 3}
    table = sorted(zip(*counts.to_pydict().values(), strict=True), key=lambda row: (order.get(row[0], 2), row[0]))
    lines = [
        f"{'split':12s}"
        + "".join(f"{name:>10s}" for name in ("clips", "labelled", "classes", "cities", "devices", "groups"))
    ]
    lines += [f"{row[0]:12s}" + "".join(f"{count or '-':>10}" for count in row[1:]) for row in table]
    train = clips.filter(pc.equal(clips["split"], "train"))
    labels = sorted(
        (item["values"], item["counts"]) for item in pc.value_counts(train["scene_label"].drop_null()).to_pylist()
    )
    if labels:
        lines.append("labelled for training: " + ", ".join(f"{name} {count}" for name, count in labels))
    missing, empty = (pc.sum(pc.equal(clips["size"], size)).as_py() for size in (-1, 0))
    if missing or empty:
        lines.append(f"files missing: {missing}, empty: {empty}; they will be quarantined")
    return lines


def evaluated(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows belong to a split that is only evaluated on."""
    return pc.or_(pc.equal(rows["split"], "val"), pc.starts_with(rows["split"], "test"))


def place(row: dict[str, object]) -> str:
    """Where a row stands, for messages."""
    return f"{row['source']} row {row['row']}"
