"""Describe a clip table: the summary that jobs print, and `--data.check`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import soundfile as sf

from raymae.config import DataConfig
from raymae.datasets.checks import check_files, check_groups, check_labels, place, unlabelled_hint
from raymae.datasets.clips import gather
from raymae.datasets.labels import Labels, label_lists
from raymae.datasets.published import cas2023
from raymae.datasets.spellings import check_spellings
from raymae.datasets.splits.assign import assign, settings, split_name
from raymae.datasets.tables.locate import EXAMPLES

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
    missing, empty = (pc.sum(pc.equal(clips["size"], size)).as_py() for size in (-1, 0))
    if missing or empty:
        lines.append(f"files missing: {missing}, empty: {empty}; they will be quarantined")
    return lines


HEADERS = 20_000
"""Most headers read to sum up the hours; of a larger set, an evenly spaced sample of this size."""

THREADS = 16


def check(config: DataConfig, folder: Path | None, labels: Labels, with_labels: bool) -> dict[str, Any]:
    """Print counts by split, class, city and device, hours, and every problem; return a summary for JSON.

    Problems are what a run would reject, files that are missing, empty or unreadable, and counts that differ from the
    published data set's. `with_labels`: check the labels, too, as for training a classifier. Raises ValueError when
    the tables can't be read at all.
    """
    whole, problems = gather(config, folder)
    rows = whole
    tests: list[Callable[[], None]] = [lambda: check_files(rows, config.max_bad_share)]
    try:
        rows, used = assign(whole, config.split), settings(config.split)
        if used.kind != "random":
            tests.append(lambda: check_groups(rows, transductive=used.transductive))
    except ValueError as error:
        problems.append(str(error))
    if with_labels:
        tests.append(lambda: check_spellings(whole))
        tests.append(lambda: check_labels(rows, labels, unlabelled_hint(rows, config)))
    for test in tests:
        try:
            test()
        except ValueError as error:
            problems.append(str(error))
    for what, mask in (("missing", pc.less(rows["size"], 0)), ("empty", pc.equal(rows["size"], 0))):
        problems += named(f"files {what}", rows.filter(mask))
    seconds, unreadable = lengths(rows)
    problems += named("files whose header can't be read", unreadable)
    left_out = f"; {len(whole) - len(rows)} clips are left out" if len(rows) < len(whole) else ""
    print("\n".join([f"split: {split_name(config.split)}{left_out}", *summary(rows, labels)]))
    for column in ("scene_label", "city", "device"):
        if rows[column].null_count < len(rows):
            print(f"\n{table(rows, column, labels).to_string()}")
    hours = {split: round(total / 3600, 2) for split, total in seconds.items()}
    about = "about, from a sample of headers" if local(rows).num_rows > HEADERS else "by their headers"
    print(f"\nhours of the local files ({about}): " + (", ".join(f"{k} {v:g}" for k, v in hours.items()) or "unknown"))
    for problem in problems:
        print(f"problem: {problem}")
    print("no problems" if not problems else f"{len(problems)} problems")
    return {"job": "check", "clips": len(rows), "hours": hours, "problems": problems}


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


def local(rows: pa.Table) -> pa.Table:
    """The rows whose files are plain, non-empty local files."""
    return rows.filter(pc.and_(pc.greater(rows["size"], 0), pc.invert(pc.match_substring(rows["path"], "://"))))


def lengths(rows: pa.Table) -> tuple[dict[str, float], pa.Table]:
    """Seconds by split of the local files, and the rows whose header can't be read."""
    files = local(rows)
    chosen = files.take(np.unique(np.linspace(0, len(files) - 1, min(HEADERS, len(files))).astype(int)))
    with ThreadPoolExecutor(THREADS) as pool:
        found = np.array(list(pool.map(seconds_of, chosen["path"].to_pylist())), float)
    splits = np.array(chosen["split"].to_pylist(), dtype=object)
    all_splits = np.array(files["split"].to_pylist(), dtype=object)
    seconds = {}
    for split in sorted(set(splits[~np.isnan(found)])):
        seconds[split] = float(np.nanmean(found[splits == split]) * np.sum(all_splits == split))
    return seconds, chosen.filter(pa.array(np.isnan(found)))


def seconds_of(path: str) -> float:
    """The length (seconds) in a file's header; NaN where it can't be read."""
    try:
        return float(sf.info(path).duration)
    except (sf.LibsndfileError, OSError):
        return float("nan")
