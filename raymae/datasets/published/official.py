"""Helpers of the loaders of published data sets: the distributed folder, its tables and folds, and its known counts."""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.containers import AUDIO
from raymae.config import DataConfig, redact
from raymae.datasets.tables.corpus import names_below
from raymae.datasets.tables.locate import EXAMPLES, reject
from raymae.datasets.tables.parts import repeats
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
    # The subsets of train hold "approximately" 5, 10, 25 and 50 % of it; their exact counts are not published.
    "dcase2024_task1": {"test": (29_680, 29_700), "classes": (10, 10)},
    "dcase2025_task1": {"test": (29_680, 29_700), "classes": (10, 10)},
    "esc50": {"clips": (2_000, 2_000), "train": (1_600, 1_600), "test": (400, 400), "classes": (50, 50)},
    "esc10": {"clips": (400, 400), "train": (320, 320), "test": (80, 80), "classes": (10, 10)},
    "urbansound8k": {"clips": (8_732, 8_732), "labelled": (8_732, 8_732), "classes": (10, 10)},
    "fsd50k": {"train": (36_796, 36_796), "val": (4_170, 4_170), "test": (10_231, 10_231), "classes": (200, 200)},
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


def read_csv(root: Folder, path: str, columns: tuple[str, ...], delimiter: str = ",") -> pa.Table:
    """The named columns of a data set's CSV as text (null where empty), and `row`, the line of each.

    The first column names the clips. Raises ValueError where the file is missing, has no rows or not these columns, for
    a row with more or fewer values than the header, and for a clip that is named twice or not at all.
    """
    if not root.exists(path):
        raise ValueError(
            f"data.root = {redact(root.url)} holds no {path}: it should be the folder of the data set as it is "
            "distributed"
        )
    place = redact((root / path).url)
    try:
        reader = csv.DictReader(io.StringIO(root.read_bytes(path).decode("utf-8-sig")), delimiter=delimiter)
        lines = [(reader.line_num, record) for record in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{place} can't be read: {error}; it should be a CSV file in UTF-8") from None
    header = reader.fieldnames or []
    missing = [name for name in columns if name not in header]
    if missing or not lines:
        found = f"has no column {missing[0]}; its columns are {', '.join(header)}" if missing else "has no rows"
        raise ValueError(f"{place} {found}")
    for line, record in lines:
        if None in record or None in record.values():
            raise ValueError(f"{place}, row {line}: should have {len(header)} values, as the header")
    texts = {name: pa.array([record[name] or None for _, record in lines], pa.string()) for name in columns}
    rows = pa.table({**texts, "row": pa.array([line for line, _ in lines], pa.int64())})
    reject(place, rows, pc.is_null(rows[columns[0]]), columns[0], "name a clip")
    reject(place, rows, repeats(rows[columns[0]]), columns[0], "be a name that no earlier row has")
    return rows


def with_folds(name: str, rows: pa.Table, config: DataConfig) -> pa.Table:
    """Append `split` from the column fold: test for `test_fold` (by default the last one), else train.

    The official folds separate a few recordings; their groups are then named by fold, too, and their count is logged.
    Splits that are drawn keep such a recording together. Raises ValueError for a fold that doesn't exist.
    """
    folds = sorted(pc.unique(rows["fold"]).to_pylist(), key=lambda fold: (len(fold), fold))
    test = config.test_fold or folds[-1]
    if test not in folds:
        raise ValueError(f"data.test_fold = {test!r} is not a fold of {name}: {', '.join(folds)}")
    split = pc.if_else(pc.equal(rows["fold"], test), "test", "train")
    if config.split.kind == "table" and config.split.file is None:
        rows = rows.set_column(rows.schema.get_field_index("group"), "group", groups_by_fold(name, rows))
    return rows.append_column("split", split)


def groups_by_fold(name: str, rows: pa.Table) -> pa.ChunkedArray:
    """The groups, those in several folds as "group fold"."""
    counts = rows.group_by("group").aggregate([("fold", "count_distinct")])
    several = counts.filter(pc.greater(counts["fold_count_distinct"], 1))["group"].combine_chunks()
    if len(several):
        log.warning(
            "%s: %d recordings have clips in several folds, as it is distributed, which may leak into the score: %s",
            *(name, len(several), examples(several.to_pylist())),
        )
    apart = pc.binary_join_element_wise(rows["group"], rows["fold"], " ")
    return pc.if_else(pc.is_in(rows["group"], value_set=several), apart, rows["group"])


def recordings_in(root: Folder, *folders: str) -> list[str]:
    """The WAV files below some folders of a data set, as paths relative to `root`."""
    return [
        f"{folder}/{path}"
        for folder in folders
        for path in names_below(root / folder, Counter())
        if path.lower().endswith(".wav")
    ]


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
