"""Helpers of the loaders of published data sets: the distributed folder and the known counts of its contents."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.containers import AUDIO
from raymae.config import DataConfig, redact
from raymae.datasets.tables.corpus import names_below
from raymae.datasets.tables.locate import EXAMPLES
from raymae.datasets.tables.table import ROWS
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

RECORDED = pa.field("recorded", pa.timestamp("s"))
"""Time when a clip was recorded (local time, null = unknown): for splits only, not a column of `CLIPS`."""

Range = tuple[int, int]

KNOWN: Mapping[str, Mapping[str, Range]] = {
    "cas2023": {"clips": (8_700, 8_700), "labelled": (1_740, 1_740), "classes": (10, 10)},
    "cas2023_eval": {"clips": (1_100, 1_100), "labelled": (0, 0)},
    # Clips that are left out (see tau.py) don't count. The official folds of 2020 list five clips that were never
    # published, so train is counted as 13,962 or 13,965 and test as 2,968 or 2,970.
    "tau2019": {"train": (9_185, 9_185), "test": (4_185, 4_185), "classes": (10, 10)},
    "tau2020_mobile": {
        "clips": (19_245, 19_250),
        "train": (13_962, 13_965),
        "test": (2_968, 2_970),
        "classes": (10, 10),
    },
    "tau2022_mobile": {"clips": (192_450, 192_500), "test": (29_680, 29_700), "classes": (10, 10)},
}
"""Row counts (least, most) that a loader returns for a complete data set, by data set."""


def root_of(config: DataConfig) -> Folder:
    """The data set's folder; ValueError where data.root is not set or not a folder."""
    if config.root is None:
        raise ValueError(f"data.dataset = {config.dataset} needs --data.root: the folder that it was unpacked to")
    folder = Folder(config.root.rstrip("/") or "/")
    if not folder.fs.isdir(folder.path()):
        raise ValueError(f"data.root = {redact(config.root)} is not a folder: give the one that holds {config.dataset}")
    return folder


def audio_below(folder: Folder) -> dict[str, str]:
    """Every recording below a folder: its name without folder and extension → its path relative to `folder`.

    Raises ValueError when two files share a name.
    """
    found: dict[str, str] = {}
    for path in sorted(names_below(folder, Counter())):
        name, dot, ending = path.rpartition("/")[2].rpartition(".")
        if name and f"{dot}{ending}".lower() in AUDIO:
            if name in found:
                raise ValueError(
                    f"{redact(folder.url)}: {found[name]} and {path} have the same name; remove one of them"
                )
            found[name] = path
    return found


def clip_rows(rows: pa.Table, source: str) -> pa.Table:
    """`ROWS`, and `recorded` if given, from a loader's columns; missing columns are null.

    Clips of split pool lose their labels, as they are used for pre-training only.
    """
    count = len(rows)
    columns = {name: rows[name] for name in rows.column_names} | {
        "source": pa.repeat(source, count),
        "weight": pa.repeat(1.0, count),
    }
    in_pool = pc.equal(columns["split"], "pool")
    columns["scene_label"] = pc.if_else(in_pool, pa.scalar(None, pa.string()), columns["scene_label"])
    schema = ROWS.append(RECORDED) if "recorded" in columns else ROWS
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.table(arrays, schema)


def examples(names: Iterable[str]) -> str:
    """The first `EXAMPLES` of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more


def warn_of_extra(name: str, extra: Iterable[str]) -> None:
    """Log the recordings of a folder that are in no table."""
    extra = sorted(extra)
    if extra:
        log.warning("%s: %d recordings are in no table and not used: %s", name, len(extra), examples(extra))


def differences(source: str, rows: pa.Table) -> list[str]:
    """A line for each count in which the rows (`ROWS`) of a published data set differ from `KNOWN`."""
    labels = rows["scene_label"].drop_null()
    splits = {item["values"]: item["counts"] for item in pc.value_counts(rows["split"]).to_pylist()}
    counts = {"clips": len(rows), "labelled": len(labels), "classes": len(labels.unique()), **splits}
    wrong = []
    for what, (least, most) in KNOWN.get(source, {}).items():
        found = counts.get(what, 0)
        if not least <= found <= most:
            right = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            name = what if what in ("clips", "labelled", "classes") else f"clips of split {what}"
            wrong.append(f"{source}: {found:,} {name}, the whole data set has {right}")
    return wrong
