"""The clips of a run: data sets by name, pool tables for any of them, and what must hold between their rows.

A data set is a function from its settings and a folder for what it writes itself (None where the storage is no local
folder) to rows with the columns of `ROWS` and, where it knows, `recorded`. To add one, write `datasets/<name>.py` and a
line in `DATASETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig
from raymae.datasets import audioset, cas2023, synthetic, tau
from raymae.datasets.locate import EXAMPLES
from raymae.datasets.nominal import SHAPES, absent, nominal
from raymae.datasets.official import differences
from raymae.datasets.table import CLIPS, ROWS, read_table, repeats
from raymae.splits import assign, settings
from raymae.targets import SEPARATOR, Labels, class_set, label_lists

__all__ = ["CLIPS", "DATASETS", "ROWS", "absent", "check_labels", "load", "load_nominal", "summary"]

log = logging.getLogger(__name__)

CLASSES_SHOWN = 50


def load_synthetic(config: DataConfig, folder: Path | None) -> pa.Table:
    """The embedded data set; it is written into `folder` where it doesn't stand there yet."""
    if folder is None:
        raise ValueError("data.dataset = synthetic writes recordings: give a local folder as --storage, not a URL")
    return read_table(str(synthetic.write(folder, config.synthetic)))


def load_tables(config: DataConfig, folder: Path | None) -> pa.Table:
    """The user's own tables, together."""
    if not config.tables:
        raise ValueError("data.dataset = table needs --data.tables: CSV or Parquet files with a column filename")
    return join([read_table(url, labels=(config.label_column, config.label_separator)) for url in config.tables])


DATASETS: dict[str, Callable[[DataConfig, Path | None], pa.Table]] = {
    "synthetic": load_synthetic,
    "table": load_tables,
    "cas2023": cas2023.load_dev,
    "cas2023_eval": cas2023.load_eval,
    "tau2019": tau.loader("tau2019"),
    "tau2020_mobile": tau.loader("tau2020_mobile"),
    "tau2022_mobile": tau.loader("tau2022_mobile"),
    "audioset": audioset.load,
}


def load(config: DataConfig, folder: Path | None, labels: Labels | None = None) -> pa.Table:
    """The clip table (`CLIPS`) of a run: its data set and its pool tables.

    `labels` says how scene_label is to be read, and that a classifier is to be trained on it. Raises ValueError for an
    unknown data set, for what `read_table` and `splits.assign` reject, for a file that two rows share, for a group with
    clips on both sides of the evaluation, when more files are missing than `max_bad_share` allows, and for what
    `check_labels` rejects.
    """
    rows = assign(load_rows(config, folder), config.split)
    check_files(rows, config.max_bad_share)
    used = settings(config.split)
    if used.kind == "random":
        log.warning("data.split.kind = random cuts recordings apart: its scores are a leak's")
    else:
        check_groups(rows, transductive=used.transductive)
    if labels:
        check_labels(rows, labels)
    return rows.select(CLIPS.names)


def load_nominal(config: DataConfig, folder: Path | None, labels: Labels | None = None) -> pa.Table:
    """As `load`, with generated clips (`nominal`) for the data sets that are absent: their names and true counts.

    Pool tables are read. Raises ValueError for a pool data set whose shape isn't known, and what `load` raises of
    splits and labels.
    """
    name = config.dataset
    own = nominal(name) if name in absent(config) else find_dataset("data.dataset =", name)(config, folder)
    tables, named = pools_of(config)
    pools = [read_table(url, pool=True, weight=weight) for url, weight in tables]
    pools += [nominal_pool(pool, weight) for pool, weight in named]
    rows = assign(join([own, *pools]), config.split)
    if labels:
        check_labels(rows, labels)
    return rows.select(CLIPS.names)


def nominal_pool(pool: str, weight: float) -> pa.Table:
    """What a data set (name:folder) gives to a pool: all that it doesn't evaluate on, without labels."""
    name = pool.partition(":")[0]
    if name not in SHAPES:
        raise ValueError(f"data.pool_datasets: a dry run without the audio knows {', '.join(SHAPES)}, not {name!r}")
    return as_pool(pool, nominal(name), weight)


def load_rows(config: DataConfig, folder: Path | None) -> pa.Table:
    """The rows (`ROWS` and, where a data set knows it, recorded) of a run before they are split.

    Raises ValueError for an unknown data set and for what `read_table` rejects.
    """
    rows, missed = gather(config, folder)
    for line in missed:
        log.warning("%s", line)
    return rows


def gather(config: DataConfig, folder: Path | None) -> tuple[pa.Table, list[str]]:
    """All rows of a run, of its data set and its pools, unchecked; and where published data sets are not whole."""
    own = find_dataset("data.dataset =", config.dataset)(config, folder)
    tables, named = pools_of(config)
    missed = differences(config.dataset, own)
    pools = [read_table(url, pool=True, weight=weight) for url, weight in tables]
    for pool, weight in named:
        name, _, root = pool.partition(":")
        whole = find_dataset("data.pool_datasets:", name)(pool_config(config, name, root), folder)
        missed += differences(name, whole)
        pools.append(as_pool(pool, whole, weight))
    return join([own, *pools]), missed


def pools_of(config: DataConfig) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The pool tables and the pool data sets, each with its weight."""
    names = (*config.pool_tables, *config.pool_datasets)
    pools = list(zip(names, config.pool_weights or (1.0,) * len(names), strict=True))
    return pools[: len(config.pool_tables)], pools[len(config.pool_tables) :]


def find_dataset(setting: str, name: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of a data set; ValueError where there is none."""
    if name not in DATASETS:
        raise ValueError(f"{setting} {name!r} is unknown; valid: {', '.join(DATASETS)}")
    return DATASETS[name]


def pool_config(config: DataConfig, name: str, root: str) -> DataConfig:
    """The settings of a data set in the pool."""
    return DataConfig(dataset=name, root=root, max_bad_share=config.max_bad_share)


def as_pool(name: str, rows: pa.Table, weight: float) -> pa.Table:
    """Rows that serve pre-training alone: without labels, and without what their data set evaluates on."""
    kept = rows.filter(pc.invert(evaluated(rows)))
    if not len(kept):
        raise ValueError(f"data.pool_datasets: {name} has clips to evaluate on alone, none to train on")
    log.info("%s: %d clips for pre-training, %d held out there stay out", name, len(kept), len(rows) - len(kept))
    values = {
        "split": pa.repeat("pool", len(kept)),
        "scene_label": pa.nulls(len(kept), pa.string()),
        "weight": pa.repeat(weight, len(kept)),
    }
    for column, value in values.items():
        kept = kept.set_column(kept.schema.get_field_index(column), column, value)
    return kept


def join(tables: list[pa.Table]) -> pa.Table:
    """Tables one after the other; a later table whose clip_ids are taken gets its number in front of them."""
    rows = tables[0]
    for number, table in enumerate(tables[1:], start=1):
        clip_id = table["clip_id"]
        while pc.any(pc.is_in(clip_id, value_set=rows["clip_id"])).as_py():
            clip_id = pc.binary_join_element_wise(str(number), clip_id, "/")
        # some data sets know one column more: when their clips were recorded
        rows = pa.concat_tables([rows, table.set_column(0, "clip_id", clip_id)], promote_options="default")
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


def check_groups(rows: pa.Table, *, transductive: bool = False) -> None:
    """ValueError when a group has clips to train on and clips to evaluate on: its score would be a leak's.

    With `transductive`, clips of split pool may come from groups to evaluate on.
    """
    grouped = rows.filter(pc.is_valid(rows["group"]))
    if transductive:
        grouped = grouped.filter(pc.not_equal(grouped["split"], "pool"))
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


def check_labels(rows: pa.Table, labels: Labels) -> None:
    """ValueError when a classifier can't be trained or judged on rows (`ROWS`) whose scene_label is read as `labels`.

    No labelled training clip; a label that doesn't fit `labels`; a held-out class without a clip in training; one class
    alone where clips may have several.
    """
    labelled = rows.filter(pc.is_valid(rows["scene_label"]))
    check_parts(labelled, labels)
    taught = class_set(labelled.filter(pc.equal(labelled["split"], "train"))["scene_label"], labels)
    if not taught:
        raise ValueError(
            "no clip of split train has a scene_label, so there is nothing to train a classifier on; "
            "jobs/pretrain.py needs no labels"
        )
    if labels == "multi" and len(taught) == 1:
        raise ValueError(
            f"column scene_label: {taught[0]!r} is the only class of the training clips; as an empty label means "
            "unlabelled, clips that hold none of the classes need a class of their own"
        )
    lists = label_lists(labelled["scene_label"], labels)
    unknown = pc.invert(pc.is_in(lists.flatten(), value_set=pa.array(taught, pa.string())))
    if pc.any(unknown).as_py():
        names = pc.unique(lists.flatten().filter(unknown)).to_pylist()
        examples = ", ".join(map(repr, names[:EXAMPLES])) + (", …" if len(names) > EXAMPLES else "")
        clips = labelled.take(pc.unique(pc.list_parent_indices(lists).filter(unknown)))
        first = clips.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"column scene_label: {examples} in {len(clips)} held-out clips (first {place(first)}, {first['clip_id']}, "
            f"split {first['split']}) without any clip in training; labels there: {', '.join(taught)}"
        )


def check_parts(labelled: pa.Table, labels: Labels) -> None:
    """ValueError for a label of several classes where clips have one, and for an empty class among several."""
    lists = label_lists(labelled["scene_label"], "multi")
    if labels == "single":
        wrong = pc.greater(pc.list_value_length(lists), 1)
        right = f"be one class; --finetune.labels multi takes what stands between {SEPARATOR!r} for classes"
    else:
        empty = pc.list_parent_indices(lists).filter(pc.equal(lists.flatten(), ""))
        wrong = pc.is_in(pa.array(range(len(lists)), pa.int64()), value_set=empty)
        right = f"hold a class on either side of every {SEPARATOR!r}"
    bad = labelled.filter(wrong)
    if len(bad):
        first = bad.slice(0, EXAMPLES).to_pylist()
        examples = ", ".join(f"{place(row)}: {row['scene_label']!r}" for row in first)
        more = f" and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
        raise ValueError(f"column scene_label, {examples}{more}: should {right}")


def summary(clips: pa.Table, labels: Labels = "single") -> list[str]:
    """Lines that say what a clip table holds: a small table by split, the classes, files that will be quarantined."""
    counted = ("city", "device", "group")
    wanted = [("clip_id", "count"), ("scene_label", "count"), *((name, "count_distinct") for name in counted)]
    counts = clips.group_by("split").aggregate(wanted).select(["split", *("_".join(item) for item in wanted)])
    order = {"train": 0, "val": 1, "pool": 3}
    table = sorted(zip(*counts.to_pydict().values(), strict=True), key=lambda row: (order.get(row[0], 2), row[0]))
    lists = label_lists(clips["scene_label"], labels)
    found = pa.table({"split": clips["split"].take(pc.list_parent_indices(lists)), "label": lists.flatten()})
    distinct = found.group_by("split").aggregate([("label", "count_distinct")]).to_pydict()
    classes = dict(zip(distinct["split"], distinct["label_count_distinct"], strict=True))
    lines = [
        f"{'split':12s}"
        + "".join(f"{name:>10s}" for name in ("clips", "labelled", "classes", "cities", "devices", "groups"))
    ]
    for split, total, labelled, *others in table:
        numbers = [total, labelled, classes.get(split), *others]
        lines.append(f"{split:12s}" + "".join(f"{number or '-':>10}" for number in numbers))
    taught = found.filter(pc.equal(found["split"], "train"))["label"]
    shares = sorted((item["values"], item["counts"]) for item in pc.value_counts(taught).to_pylist())
    if shares:
        more = f", … ({len(shares)} classes)" if len(shares) > CLASSES_SHOWN else ""
        shown = ", ".join(f"{name} {count}" for name, count in shares[:CLASSES_SHOWN])
        lines.append(f"labelled for training: {shown}{more}")
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
