"""What the loaders of published data sets share: the folder as it is distributed, and what is known to be in it."""

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
"""When a clip was recorded (local time, null = unknown): for splits alone; a clip table (`CLIPS`) has none."""

Range = tuple[int, int]

KNOWN: Mapping[str, Mapping[str, Range]] = {
    "cas2023": {"clips": (8_700, 8_700), "labelled": (1_740, 1_740), "classes": (10, 10)},
    "cas2023_eval": {"clips": (1_100, 1_100), "labelled": (0, 0)},
    # Clips that stay out (see tau.py) don't count. The official folds of 2020 name five clips that were never given
    # out, so that train is 13,962 or 13,965 and test 2,968 or 2,970, by who counts.
    "tau2019": {"train": (9_185, 9_185), "test": (4_185, 4_185), "classes": (10, 10)},
    "tau2020_mobile": {
        "clips": (19_245, 19_250),
        "train": (13_962, 13_965),
        "test": (2_968, 2_970),
        "classes": (10, 10),
    },
    "tau2022_mobile": {"clips": (192_450, 192_500), "test": (29_680, 29_700), "classes": (10, 10)},
}
"""Counts (least, most) of the rows that a loader gives for the whole data set, by data set."""


def root_of(config: DataConfig) -> Folder:
    """The data set's folder; ValueError where none is set or there is none."""
    if config.root is None:
        raise ValueError(f"data.dataset = {config.dataset} needs --data.root: the folder that it was unpacked to")
    folder = Folder(config.root.rstrip("/") or "/")
    if not folder.fs.isdir(folder.path()):
        raise ValueError(f"data.root = {redact(config.root)} is no folder: name the one that {config.dataset} lies in")
    return folder


def audio_below(folder: Folder) -> dict[str, str]:
    """Every recording below a folder: its name without folders and ending → its path relative to `folder`.

    Raises ValueError for a name that two files have.
    """
    found: dict[str, str] = {}
    for path in sorted(names_below(folder, Counter())):
        name, dot, ending = path.rpartition("/")[2].rpartition(".")
        if name and f"{dot}{ending}".lower() in AUDIO:
            if name in found:
                raise ValueError(f"{redact(folder.url)}: {found[name]} and {path} have one name; remove one of them")
            found[name] = path
    return found


def clip_rows(rows: pa.Table, source: str) -> pa.Table:
    """`ROWS`, and `recorded` where it is known, from the columns that a loader found; what it lacks is null.

    Clips of split pool lose their labels, as they serve pre-training alone.
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
    """The first of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more


def warn_of_extra(name: str, extra: Iterable[str]) -> None:
    """Say which recordings lie in the folder and are in no table."""
    extra = sorted(extra)
    if extra:
        log.warning("%s: %d recordings are in no table and not used: %s", name, len(extra), examples(extra))


def differences(source: str, rows: pa.Table) -> list[str]:
    """Where the rows of a published data set (`ROWS`) are not as many as are known, one line each."""
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
