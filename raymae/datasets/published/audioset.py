"""AudioSet and data sets in its format: multi-label segments of videos.

The folder holds, at any depth, the recordings (already cut) and the official CSVs. A recording is named by its video's
id, optionally with `Y` in front and `_` and more behind it, as the usual download tools do. The CSVs are
`balanced_train_segments.csv` (split train), `unbalanced_train_segments.csv` (split pool) and `eval_segments.csv` (split
test), with columns `# YTID, start_seconds, end_seconds, positive_labels`, comment lines and quotes. Labels are ids like
/m/09x0r; `class_labels_indices.csv` or `ontology.json` holds their names.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa

from raymae.config import DataConfig, redact
from raymae.datasets.labels import SEPARATOR
from raymae.datasets.published.official import audio_below, clip_rows, examples, root_of, warn_of_extra
from raymae.datasets.tables.corpus import names_below
from raymae.datasets.tables.locate import locate, reject
from raymae.datasets.tables.parts import repeats
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

SEGMENTS = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "pool",
    "eval_segments.csv": "test",
}
NAMES = ("class_labels_indices.csv", "ontology.json")
ID_LENGTH = 11
"""Characters of a video's id."""


def load(config: DataConfig, folder: Path | None) -> pa.Table:
    """`ROWS`: one per segment; group is the video's id, scene_label the class names joined by `SEPARATOR`.

    Missing recordings have size -1 (a tenth or more of AudioSet can't be downloaded any more: raise `max_bad_share`).
    Raises ValueError for a folder without any of the CSVs, for a malformed line, for an unknown label and for a video
    that occurs twice.
    """
    root = root_of(config)
    tables = find_tables(root)
    parts = [name for name in SEGMENTS if name in tables]
    if not parts:
        raise ValueError(f"data.root = {redact(root.url)} holds none of {', '.join(SEGMENTS)}")
    names = read_names(root, tables)
    rows = pa.concat_tables(read_segments(root, tables[name], SEGMENTS[name], names) for name in parts)
    repeated = repeats(rows["clip_id"])
    reject(redact(root.url), rows, repeated, "clip_id", f"occur once in {', '.join(parts)}: a video has one segment")
    files, extra = by_video(audio_below(root), set(rows["clip_id"].to_pylist()))
    paths = [files.get(clip, f"{clip}.wav") for clip in rows["clip_id"].to_pylist()]
    rows = rows.append_column("filename", pa.array(paths, pa.string())).append_column("group", rows["clip_id"])
    warn_of_extra(redact(root.url), extra)
    return clip_rows(locate(redact(root.url), root, rows), "audioset")


def find_tables(root: Folder) -> dict[str, str]:
    """The official tables below a folder: name → path; ValueError where one occurs twice."""
    found: dict[str, str] = {}
    for path in sorted(names_below(root, Counter())):
        name = path.rpartition("/")[2]
        if name in (*SEGMENTS, *NAMES):
            if name in found:
                raise ValueError(f"{redact(root.url)} holds {name} twice, as {found[name]} and {path}; keep one")
            found[name] = path
    return found


def read_names(root: Folder, tables: dict[str, str]) -> dict[str, str] | None:
    """Class names by id; None without a table of names."""
    known = [name for name in NAMES if name in tables]
    if not known:
        log.warning("%s holds neither %s: classes are named by their ids", redact(root.url), " nor ".join(NAMES))
        return None
    path = tables[known[0]]
    place, content = redact((root / path).url), root.read_bytes(path)
    try:
        if known[0].endswith(".json"):
            names = {item["id"]: item["name"] for item in json.loads(content)}
        else:
            names = {row["mid"]: row["display_name"] for row in csv.DictReader(text(content))}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{place} can't be read: {type(error).__name__} {error}; it should have the columns index, mid, "
            "display_name (class_labels_indices.csv), or be a list of objects with id and name (ontology.json)"
        ) from None
    wrong = [f"{key}: {name!r}" for key, name in names.items() if not name or SEPARATOR in name]
    if wrong:
        raise ValueError(f"{place}, {examples(wrong)}: a class should have a name without {SEPARATOR!r}")
    return names


def read_segments(root: Folder, path: str, split: str, names: dict[str, str] | None) -> pa.Table:
    """clip_id, scene_label, split and row (line number) of every segment; ValueError for a malformed line."""
    place = redact((root / path).url)
    reader = csv.reader(text(root.read_bytes(path)), skipinitialspace=True)
    clips, labels, lines = [], [], []
    for record in reader:
        if not record or record[0].startswith("#"):
            continue
        if len(record) != 4 or len(record[0]) != ID_LENGTH:
            raise ValueError(
                f"{place}, row {reader.line_num}: {', '.join(record)!r} should be YTID (of {ID_LENGTH} characters), "
                'start_seconds, end_seconds, "positive_labels" with commas between'
            )
        clips.append(record[0])
        labels.append(label(record[3], names, f"{place}, row {reader.line_num}"))
        lines.append(reader.line_num)
    if not clips:
        raise ValueError(f"{place} has no rows")
    columns = {"clip_id": clips, "scene_label": labels, "split": [split] * len(clips)}
    table = pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
    return table.append_column("row", pa.array(lines, pa.int64()))


def label(positive: str, names: dict[str, str] | None, place: str) -> str:
    """The scene_label of a segment: its class names joined by `SEPARATOR`."""
    ids = [item.strip() for item in positive.split(",")]
    unknown = [item for item in ids if not item or (names is not None and item not in names)]
    if unknown:
        raise ValueError(f"{place}, positive_labels: {unknown[0]!r} is not a known label; should be ids like /m/09x0r")
    return SEPARATOR.join(ids if names is None else (names[item] for item in ids))


def by_video(files: dict[str, str], videos: set[str]) -> tuple[dict[str, str], list[str]]:
    """Recordings by the id of their video, and the paths of the other recordings; ValueError for two of one video.

    A file name is ID or YID, with or without _START and more behind it; an id may itself contain Y and _.
    """
    found: dict[str, str] = {}
    extra = []
    for name, path in files.items():
        starts = (0, 1) if name.startswith("Y") else (0,)
        ids = [name[start : start + ID_LENGTH] for start in starts if name[start + ID_LENGTH :][:1] in ("", "_")]
        video = next((one for one in ids if one in videos), None)
        if video is None:
            extra.append(path)
        elif video in found:
            raise ValueError(f"{found[video]} and {path} are of the same video, {video}; keep one of them")
        else:
            found[video] = path
    return found, extra


def text(content: bytes) -> io.TextIOWrapper:
    """A file's text, with or without a byte-order mark."""
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
