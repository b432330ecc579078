"""The recordings that `--predict.inputs` names: files, folders, tables and shards, at paths or URLs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from fsspec.core import url_to_fs

from raymae.audio.containers import AUDIO, PACKED
from raymae.config import redact
from raymae.datasets.tables.corpus import log_left_out, what_it_holds
from raymae.datasets.tables.links import Links, walk
from raymae.datasets.tables.settings import PLAIN, TableSettings
from raymae.datasets.tables.table import LOCATED, MetadataTable
from raymae.storage.folder import Folder, change_time
from raymae.storage.found import what_is_there
from raymae.storage.retry import READ_SECONDS, with_retries

TABLES = (".csv", ".tsv", ".parquet", ".tar")
INPUTS = pa.schema([("path", pa.string()), ("size", pa.int64()), ("mtime", pa.float64())])
"""Size in bytes (-1: no such file); time of change in seconds since 1970 (0: unknown)."""
Row = tuple[str, int, float]


def find_files(inputs: tuple[str, ...], settings: TableSettings = PLAIN) -> pa.Table:
    """Every recording (`INPUTS`) in the order of the inputs and of their content; one named twice has two rows.

    What a folder holds and isn't used is counted and logged. Links to files are followed; links to folders, and those
    that a table names, as `settings` say, which also say how tables are read.
    """
    if not inputs:
        raise ValueError("--predict.inputs names no file: give audio files, folders, or tables with a filename column")
    return pa.concat_tables([found for name in inputs for found in _find(name, settings)]).combine_chunks()


def _find(name: str, settings: TableSettings) -> Iterator[pa.Table]:
    """The recordings that one input names."""
    if packed := re.match(PACKED, name):
        yield _table([(name, *_look(packed["outer"])[1:])])
    elif "://" not in name and Path(name).expanduser().is_dir():
        yield _folder(name, settings.links)
    elif "://" not in name and not name.lower().endswith((*TABLES, *AUDIO)) and not Path(name).expanduser().exists():
        folder = Folder(str(Path(name).expanduser().resolve()))
        raise ValueError(f"--predict.inputs {name} can't be read{what_is_there(folder)}")
    elif name.lower().endswith(TABLES) or ("://" in name and not name.lower().endswith(AUDIO)):
        table = MetadataTable.open(name, ("filename",), settings)
        yield table.clips(("filename",), pool=True).select(LOCATED).cast(INPUTS)
    else:
        yield _table([_look(name)])


def _folder(name: str, links: Links) -> pa.Table:
    """The recordings below a local folder, sorted by path."""
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for folder, names in walk(os.path.realpath(os.path.expanduser(name)), links, left_out):
        for file in names:
            ending = os.path.splitext(file)[1].lower()
            if ending in AUDIO:
                rows.append(_look(os.path.join(folder, file)))
            else:
                left_out[f"files *{ending}" if ending else "files without an ending"] += 1
    if not rows:
        kinds = f"no audio file ({', '.join(AUDIO)}) below {redact(name)}"
        raise ValueError(f"--predict.inputs: {kinds}{what_it_holds(left_out)}")
    log_left_out(f"--predict.inputs: {redact(name)}", left_out)
    return _table(sorted(rows), name)


def _look(path: str) -> Row:
    """A file's row; a file that doesn't exist, or whose storage can't be reached, gets size -1."""
    try:
        if "://" in path:
            fs, inner = url_to_fs(path)
            info = with_retries(lambda: fs.info(inner), f"reading {redact(path)}", READ_SECONDS)
            return path, int(info["size"] or 0), change_time(info)
        path = os.path.abspath(os.path.expanduser(path))
        status = os.stat(path)
    except Exception:  # file systems raise exceptions of their own; the reader reports them
        return path, -1, 0.0
    return path, status.st_size, status.st_mtime


def _table(rows: list[Row], folder: str | None = None) -> pa.Table:
    columns = zip(*rows, strict=True)
    try:
        return pa.table([pa.array(column, field.type) for column, field in zip(columns, INPUTS, strict=True)], INPUTS)
    except UnicodeEncodeError:
        raise ValueError(f"--predict.inputs: a file name of {folder or rows[0][0]!a} is not UTF-8; rename it") from None
