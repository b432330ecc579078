"""Split files: split.parquet, and split.json with the split's name, its hash and the settings it was drawn with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import SplitConfig, from_dict, redact, to_dict
from raymae.storage.folder import Folder

TABLE, DESCRIPTION = "split.parquet", "split.json"
COLUMNS = ("clip_id", "group", "split", "labelled")
NOTE = b"raymae.split"
"""Key in the schema's metadata: hash of the table that was split, and number of clips left out."""


def split_name(config: SplitConfig) -> str:
    """The name of a split, given with all of its scores: "visit, seed 0"; that of a leaking split says so."""
    if config.file:  # its name says what was drawn; the labels may be thinned here with another seed
        share, seed = config.labelled_share, config.seed
        other = f" (seed {seed})" if seed != settings(config).seed else ""
        again = [f"labels of {share:.4g} of the training groups{other}"] if share else []
        return ", ".join([str(_described(config.file)["name"]), *again])
    used = config
    if used.kind == "table":
        parts = ["as the table says"]
    elif used.kind == "random":
        parts = ["random, LEAKS (clips of one recording on both sides)"]
    elif used.held_out:
        parts = [f"{used.kind} ({', '.join(used.held_out)} held out)"]
    else:
        parts = [used.kind]
    if used.kind != "table" or used.val_share or used.labelled_share:
        parts.append(f"seed {used.seed}")
    parts += ["transductive"] if used.transductive else []
    parts += [f"labels of {used.labelled_share:.4g} of the training groups"] if used.labelled_share else []
    return ", ".join(parts)


def settings(config: SplitConfig) -> SplitConfig:
    """The settings that a split was drawn with: those in its file if it has one."""
    if not config.file:
        return config
    used: SplitConfig = from_dict(SplitConfig, _described(config.file)["settings"], "data.split.")
    return used


def write_split(folder: Folder, rows: pa.Table, config: SplitConfig) -> str:
    """Write split.parquet and split.json of rows from `assign`, readable as `data.split.file`; returns the hash.

    split.parquet: clip_id, group, split, labelled. split.json: name, hash (of split.parquet), table (hash of the clips
    that were split), left_out, settings, and by split the number of clips, labelled clips and groups.
    """
    note = json.loads((rows.schema.metadata or {}).get(NOTE, b"{}"))
    table = pa.table([*(rows[name] for name in COLUMNS[:3]), pc.is_valid(rows["scene_label"])], names=list(COLUMNS))
    used = replace(settings(config), labelled_share=config.labelled_share or settings(config).labelled_share)
    counted = table.group_by("split").aggregate(
        [("clip_id", "count"), ("labelled", "sum"), ("group", "count_distinct")]
    )
    description = {
        "name": split_name(config),
        "hash": split_hash(table),
        "table": note.get("table", table_hash(rows)),
        "left_out": note.get("left_out", 0),
        "settings": to_dict(used),
        "splits": {
            row["split"]: {
                "clips": row["clip_id_count"], "labelled": row["labelled_sum"], "groups": row["group_count_distinct"],
            }
            for row in counted.sort_by("split").to_pylist()
        },
    }  # fmt: skip
    folder.write_table(TABLE, table)
    folder.write_json(DESCRIPTION, description)
    return str(description["hash"])


def read_split(file: str, rows: pa.Table, fit: str) -> pa.Table:
    """The table (`COLUMNS`) of a split file for `rows`, whose `table_hash` is `fit`.

    Raises ValueError where the file was changed or made for other clips.
    """
    described, name = _described(file), redact(file)
    table = _read(file)
    if described["hash"] != split_hash(table):
        raise ValueError(f"data.split.file {name}: {TABLE} has changed since its hash was taken; make a new split")
    if described["table"] != fit:
        raise ValueError(
            f"data.split.file {name} was made for other clips (hash {described['table']}, this table {fit}): "
            f"{_difference(rows, table)}"
        )
    return table


def _difference(rows: pa.Table, table: pa.Table) -> str:
    """How the clips of a table differ from those of a split file, as far as the file shows."""
    absent = table.filter(pc.invert(pc.is_in(table["clip_id"], value_set=rows["clip_id"])))
    if len(absent):
        return f"{len(absent)} of its clips are not here, for example {absent['clip_id'][0].as_py()!r}"
    place = pc.index_in(table["clip_id"], value_set=rows["clip_id"])
    here = rows["group"].take(place)
    moved = table.filter(pc.not_equal(pc.fill_null(table["group"], ""), pc.fill_null(here, "")))
    if len(moved):
        return f"{len(moved)} clips have another group here, for example {moved['clip_id'][0].as_py()!r}"
    return "there are clips here that are not in it"


def _folder(file: str) -> Folder:
    for name in (TABLE, DESCRIPTION):
        file = file.removesuffix(name)
    return Folder(file.rstrip("/") or ".")


def _described(file: str) -> dict[str, Any]:
    try:
        described: dict[str, Any] = _folder(file).read_json(DESCRIPTION)
        if not {"name", "hash", "table", "settings"} <= set(described):
            raise ValueError(f"{DESCRIPTION} was not written by write_split")
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"data.split.file {redact(file)} can't be read: {redact(str(error))}; it should be a folder with "
            f"{DESCRIPTION} and {TABLE}, such as a run folder"
        ) from None
    return described


def _read(file: str) -> pa.Table:
    try:
        return _folder(file).read_table(TABLE, list(COLUMNS))
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"data.split.file {redact(file)}: {TABLE} can't be read: {redact(str(error))}") from None


def split_hash(table: pa.Table) -> str:
    """Hash (16 hex digits) of the content of a split (`COLUMNS`), independent of the order of its rows."""
    return _hash(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True))


def table_hash(rows: pa.Table) -> str:
    """Hash (16 hex digits) of a table's clips and groups, independent of their order; pool clips don't count."""
    rows = rows.filter(pc.not_equal(rows["split"], "pool"))
    return _hash(zip(rows["clip_id"].to_pylist(), rows["group"].to_pylist(), strict=True))


def _hash(lines: Iterable[tuple[Any, ...]]) -> str:
    state = hashlib.sha256()
    for line in sorted(json.dumps(line) for line in lines):
        state.update(f"{line}\n".encode())
    return state.hexdigest()[:16]
