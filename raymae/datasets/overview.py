"""Describe a clip table: the summary that jobs print, and `--data.check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import Config
from raymae.datasets.checks import check_files, check_groups, check_labels, place, unlabelled_hint
from raymae.datasets.clips import gather, own_folder
from raymae.datasets.content import with_content
from raymae.datasets.labels import Labels, label_lists
from raymae.datasets.published import cas2023
from raymae.datasets.recordings import cut, lengths
from raymae.datasets.spellings import check_spellings
from raymae.datasets.splits.assign import assign, settings, split_name
from raymae.datasets.tables.locate import EXAMPLES
from raymae.storage.folder import Folder

CLASSES_SHOWN = 50


def summary(clips: pa.Table, labels: Labels = "single") -> list[str]:
    """Lines that describe a clip table: counts by split, training classes, files that will be quarantined."""
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
    train_labels = found.filter(pc.equal(found["split"], "train"))["label"]
    by_class = sorted((item["values"], item["counts"]) for item in pc.value_counts(train_labels).to_pylist())
    if by_class:
        more = f", … ({len(by_class)} classes)" if len(by_class) > CLASSES_SHOWN else ""
        listed = ", ".join(f"{name} {count}" for name, count in by_class[:CLASSES_SHOWN])
        lines.append(f"labelled for training: {listed}{more}")
    lines += hours(clips)
    missing, empty = (pc.sum(pc.equal(clips["size"], size)).as_py() for size in (-1, 0))
    if missing or empty:
        lines.append(f"files missing: {missing}, empty: {empty}; they will be quarantined")
    return lines


def hours(clips: pa.Table) -> list[str]:
    """A line with the hours of recordings that are there and used, by split; none for a table without lengths."""
    if "seconds" not in clips.column_names:
        return []
    sums = clips.group_by("split").aggregate([("seconds", "sum"), ("unused_seconds", "sum")]).to_pydict()
    used = dict(zip(sums["split"], sums["seconds_sum"], strict=True))
    unused = sum(one or 0.0 for one in sums["unused_seconds_sum"])
    by_split = ", ".join(f"{split} {(used[split] or 0.0) / 3600:.2f}" for split in sorted(used))
    total = sum(one or 0.0 for one in used.values())
    line = f"hours: {(total + unused) / 3600:.2f} there, {total / 3600:.2f} used ({by_split})"
    line += "; rests too short for a clip are not" if unused >= 36 else ""
    unknown = clips["seconds"].null_count
    return [line + (f"; {unknown} recordings of unknown length" if unknown else "")]


def check(config: Config, storage: Folder, labels: Labels, with_labels: bool) -> dict[str, Any]:
    """Print counts by split, class, city and device, hours, and every problem; return a summary for JSON.

    Problems are what a run would reject, files that are missing, empty or unreadable, and counts that differ from the
    published data set's. `with_labels`: check the labels, too, as for training a classifier. Raises ValueError when
    the tables can't be read at all.
    """
    data = config.data
    whole, problems = gather(data, own_folder(storage))
    rows = whole
    tests: list[Callable[[], None]] = [lambda: check_files(rows, data.max_bad_share)]
    try:
        rows, used = assign(whole, data.split), settings(data.split)
        if used.kind != "random":
            tests.append(lambda: check_groups(rows, transductive=used.transductive))
    except ValueError as error:
        problems.append(str(error))
    if with_labels:
        tests.append(lambda: check_spellings(whole))
        tests.append(lambda: check_labels(rows, labels, unlabelled_hint(rows, data)))
    for test in tests:
        try:
            test()
        except ValueError as error:
            problems.append(str(error))
    for what, mask in (("missing", pc.less(rows["size"], 0)), ("empty", pc.equal(rows["size"], 0))):
        problems += named(f"files {what}", rows.filter(mask))
    there = rows.filter(pc.greater(rows["size"], 0))
    seconds = lengths(with_content(there), storage)
    problems += named("files that can't be read", there.filter(pa.array(np.isnan(seconds))))
    clips = cut(there, seconds, config.audio)
    left_out = f"; {len(whole) - len(rows)} clips are left out" if len(rows) < len(whole) else ""
    print("\n".join([f"split: {split_name(data.split)}{left_out}", *summary(rows, labels)]))
    for column in ("scene_label", "city", "device"):
        if rows[column].null_count < len(rows):
            print(f"\n{table(rows, column, labels).to_string()}")
    print("\n" + "\n".join(hours(clips)))
    for problem in problems:
        print(f"problem: {problem}")
    print("no problems" if not problems else f"{len(problems)} problems")
    sums = clips.group_by("split").aggregate([("seconds", "sum")]).to_pylist()
    by_split = {one["split"]: round((one["seconds_sum"] or 0.0) / 3600, 2) for one in sums}
    return {"job": "check", "recordings": len(rows), "clips": len(clips), "hours": by_split, "problems": problems}


def named(what: str, rows: pa.Table) -> list[str]:
    """A line with the count of some rows and the first few of them; no line for no rows."""
    if not len(rows):
        return []
    first = ", ".join(f"{place(row)}: {row['path']}" for row in rows.slice(0, EXAMPLES).to_pylist())
    return [f"{what}: {len(rows)} ({first}{', …' if len(rows) > EXAMPLES else ''})"]


def table(rows: pa.Table, column: str, labels: Labels) -> pd.DataFrame:
    """Clip counts by value of a column (rows) and split (columns); classes of CAS 2023 in the challenge's order."""
    split, values = rows["split"], rows[column].combine_chunks()
    if column == "scene_label":
        lists = label_lists(rows[column], labels)
        split, values = split.take(pc.list_parent_indices(lists)), lists.flatten()
    found = pd.crosstab(
        pd.Series(values.to_pylist(), dtype=object).fillna("(unknown)"), pd.Series(split.to_pylist(), dtype=object)
    )
    found.index.name, found.columns.name = column, None
    if column == "scene_label" and set(found.index) <= set(cas2023.CLASSES):
        found = found.reindex([name for name in cas2023.CLASSES if name in found.index])
    return found
