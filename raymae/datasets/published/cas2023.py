"""CAS 2023 (ICME 2024 and APSIPA 2025 challenges): Chinese acoustic scenes, one fifth of the clips labelled.

The folder holds the recordings, at any depth, and one or both of the two CSVs of a part: ICME 2024's
(`filename,scene_label`) and APSIPA 2025's metadata of the same clips (`filename,location,record_time,scene_label`).
Only the latter shows which clips were cut from one recording: a session, i.e. equal location and record_time.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.published.official import audio_below, clip_rows, root_of, warn_of_extra
from raymae.datasets.tables.corpus import names_below
from raymae.datasets.tables.locate import locate, reject
from raymae.datasets.tables.table import MetadataTable
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

CLASSES = (
    "Bus",
    "Airport",
    "Metro",
    "Restaurant",
    "Shopping mall",
    "Public square",
    "Urban park",
    "Traffic street",
    "Construction site",
    "Bar",
)
"""The scenes, in the challenge's order."""

TABLES = {
    "cas2023": ("ICME2024_ASC_dev_label.csv", "APSIPA2025_GC_ASC_dev_metadata.csv"),
    "cas2023_eval": ("ICME2024_ASC_eval.csv", "APSIPA2025_GC_ASC_eval_metadata.csv"),
}
"""The two CSVs of a part: without and with city and time."""

SPLIT = {"cas2023": "train", "cas2023_eval": "test_eval"}


def load_dev(config: DataConfig, folder: Path | None) -> pa.Table:
    """The 8,700 clips of the development part, all of split train (1,740 labelled): see `read`."""
    return read(config, "cas2023")


def load_eval(config: DataConfig, folder: Path | None) -> pa.Table:
    """The 1,100 clips of the evaluation part, split test_eval; their labels were never published: see `read`."""
    return read(config, "cas2023_eval")


def read(config: DataConfig, part: str) -> pa.Table:
    """`ROWS` with `recorded`; city, recorded and group ("city time", the session) are null without the metadata CSV.

    Missing recordings have size -1. Raises ValueError for a folder without a CSV, for rows with an unknown scene, a
    repeated name or an invalid time, for CSVs that contradict each other and for a session with two scenes.
    """
    root = root_of(config)
    tables = find_tables(root)
    plain, timed = (tables.get(name) for name in TABLES[part])
    if plain is None and timed is None:
        raise ValueError(
            f"data.root = {redact(root.url)} holds neither {' nor '.join(TABLES[part])}: put one of them beside the "
            "recordings (the first is distributed with ICME 2024, the second with APSIPA 2025 and has city and time)"
        )
    if timed is None:
        log.warning(
            "%s: %s is missing, so city, time and session of the clips are unknown, and any split of them has clips "
            "of one recording on both sides",
            redact(root.url),
            TABLES[part][1],
        )
    table = read_csv(timed or plain)  # type: ignore[arg-type]
    name = (timed or plain).name  # type: ignore[union-attr]
    if plain and timed:
        check_agreement(read_csv(plain), plain.name, table, name)
    table = with_session(name, table)
    return clip_rows(with_files(name, root, table, tables, SPLIT[part]), part)


def find_tables(root: Folder) -> dict[str, MetadataTable]:
    """The challenge's CSVs below a folder, by name."""
    wanted = {name for names in TABLES.values() for name in names}
    found: dict[str, MetadataTable] = {}
    for path in sorted(names_below(root, Counter())):
        name = path.rpartition("/")[2]
        if name in wanted:
            if name in found:
                raise ValueError(f"{redact(root.url)} holds {name} more than once, also as {path}; keep one")
            required = ("filename", "scene_label", *(("location", "record_time") if "metadata" in name else ()))
            found[name] = MetadataTable.open((root / path).url, required)
    return found


def read_csv(table: MetadataTable) -> pa.Table:
    """filename, scene_label, row and (metadata CSV) location, record_time of one of the CSVs, in its order."""
    rows = table.texts(("filename", "scene_label", *(name for name in table.required if name[0] in "lr")))
    ends = pc.match_substring_regex(rows["filename"], r"(?i)(/|\.wav$)")
    reject(table.name, rows, ends, "filename", "be the name of a recording without folder and extension")
    scene = rows["scene_label"]
    unknown = pc.and_(pc.is_valid(scene), pc.invert(pc.is_in(scene, value_set=pa.array(CLASSES))))
    reject(table.name, rows, unknown, "scene_label", f"be empty (unlabelled) or one of {', '.join(CLASSES)}")
    return rows


def check_agreement(one: pa.Table, one_name: str, other: pa.Table, other_name: str) -> None:
    """Raise ValueError unless two CSVs hold the same clips with the same labels."""
    for rows, name, others, others_name in ((one, one_name, other, other_name), (other, other_name, one, one_name)):
        extra = pc.invert(pc.is_in(rows["filename"], value_set=others["filename"].combine_chunks()))
        reject(name, rows, extra, "filename", f"be in {others_name}, too, which lists the same clips")
    place = pc.index_in(one["filename"], value_set=other["filename"].combine_chunks())
    differ = pc.not_equal(pc.fill_null(one["scene_label"], ""), pc.fill_null(other["scene_label"].take(place), ""))
    reject(one_name, one, differ, "scene_label", f"be the scene_label of the same clip in {other_name}")


def with_session(name: str, rows: pa.Table) -> pa.Table:
    """Append city, recorded and group, given columns location and record_time; else return the rows as they are."""
    if "location" not in rows.column_names:
        return rows
    recorded = pc.strptime(rows["record_time"], format="%Y-%m-%d %H:%M:%S", unit="s", error_is_null=True)
    wrong = pc.and_(pc.is_null(recorded), pc.is_valid(rows["record_time"]))
    reject(name, rows, wrong, "record_time", "be a time like 2023-06-18 18:44:34")
    session = pc.binary_join_element_wise(rows["location"], rows["record_time"], " ")
    rows = rows.append_column("city", rows["location"]).append_column("recorded", recorded)
    rows = rows.append_column("group", session)
    check_sessions(name, rows)
    return rows


def check_sessions(name: str, rows: pa.Table) -> None:
    """Raise ValueError for a session with two scenes: one place at one time has one scene, so one row is wrong."""
    known = rows.filter(pc.and_(pc.is_valid(rows["group"]), pc.is_valid(rows["scene_label"])))
    scenes = known.group_by("group").aggregate([("scene_label", "count_distinct")])
    mixed = scenes.filter(pc.greater(scenes["scene_label_count_distinct"], 1))["group"]
    if len(mixed):
        members = known.filter(pc.equal(known["group"], mixed[0])).to_pylist()
        first = members[0]
        other = next(row for row in members if row["scene_label"] != first["scene_label"])
        more = f" (and {len(mixed) - 1} more sessions)" if len(mixed) > 1 else ""
        raise ValueError(
            f"{name}, column scene_label: the session {mixed[0].as_py()!r}{more} is {first['scene_label']!r} in row "
            f"{first['row']} and {other['scene_label']!r} in row {other['row']}: one recording should have one scene"
        )


def with_files(name: str, root: Folder, rows: pa.Table, tables: dict[str, MetadataTable], split: str) -> pa.Table:
    """Append clip_id, split and the recordings' path, size and mtime; recordings in no table are logged."""
    files = audio_below(root)
    clip_ids = rows["filename"].to_pylist()
    paths = [files.get(clip, f"{clip}.wav") for clip in clip_ids]
    rows = rows.append_column("clip_id", rows["filename"]).append_column("split", pa.repeat(split, len(rows)))
    rows = rows.set_column(rows.schema.get_field_index("filename"), "filename", pa.array(paths, pa.string()))
    extra = set(files).difference(clip_ids)
    if extra:  # recordings of the other part may be in this folder, too
        others = (table.texts(("filename",))["filename"].to_pylist() for table in tables.values())
        warn_of_extra(redact(root.url), extra.difference(*others))
    return locate(name, root, rows)
