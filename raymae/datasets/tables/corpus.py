"""Clips without a metadata table: all recordings below a folder, in a tar shard or in the rows of a Parquet file."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.containers import AUDIO
from raymae.audio.sources import look_into
from raymae.config import redact
from raymae.datasets.tables.links import OWN, Links, walk
from raymae.datasets.tables.locate import LISTINGS, locate
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

MOST_KINDS = 8
"""Kinds of files that a message counts."""

SHARDS = {".tar": "tar", ".parquet": "parquet"}


def read_folder(name: str, folder: Folder, links: Links = OWN) -> pa.Table:
    """Every recording below a folder, sorted by name: files with an audio extension, and the contents of its shards.

    Columns filename, path, size and mtime. Hidden files, links to folders that `links` doesn't follow and files of
    other kinds are left out and their counts logged. Raises ValueError where nothing is left, and for a link to a file
    out of the folder that isn't followed.
    """
    left_out: Counter[str] = Counter()
    names = sorted(item for item in names_below(folder, left_out, links) if _is_wanted(item, left_out))
    unreadable = [item for item in names if item.encode(errors="ignore").decode() != item]
    if unreadable:
        raise ValueError(f"{name}: the file name {unreadable[0]!a} is not UTF-8; rename it")
    rows = pa.table({"filename": pa.array(names, pa.string()), "row": pa.array(range(1, len(names) + 1))})
    found = locate(name, folder, rows, links).drop_columns("row")
    shards = [row for row, item in enumerate(names) if _suffix(item) in SHARDS]
    parts, start = [], 0
    with ThreadPoolExecutor(LISTINGS) as pool:
        listed = pool.map(lambda row: read_shard(names[row], found["path"][row].as_py()), shards)
        for row, (clips, others) in zip(shards, listed, strict=True):
            parts += [found.slice(start, row - start), clips]
            start = row + 1
            left_out += others
    clips = pa.concat_tables([*parts, found.slice(start)])
    if not len(clips):
        kinds = f"audio ({', '.join(AUDIO)}), tar shard or Parquet file with a column audio"
        raise ValueError(f"{name} can't be read: there is no {kinds} below it{what_it_holds(left_out)}")
    log_left_out(name, left_out)
    return clips


def log_left_out(name: str, left_out: Counter[str]) -> None:
    """Log the counts of files that were left out, by kind."""
    if kinds := some_kinds(left_out):
        log.warning("%s: left out: %s", name, kinds)


def some_kinds(left_out: Counter[str]) -> str:
    """The counts of files by kind, most frequent first, for messages."""
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common() if count]
    more = f" and {len(kinds) - MOST_KINDS} more kinds" if len(kinds) > MOST_KINDS else ""
    return ", ".join(kinds[:MOST_KINDS]) + more


def what_it_holds(left_out: Counter[str]) -> str:
    """The end of a message about a folder without recordings: what it holds in their place."""
    kinds = some_kinds(left_out)
    return f"; it holds {kinds}" if kinds else ": the folder is empty"


def read_shard(filename: str, path: str) -> tuple[pa.Table, Counter[str]]:
    """The clips of a tar or Parquet file, with the columns of `read_folder`, and counts of its other contents by kind.

    If part of it can't be read, a last row `*` represents that part; reading the row fails with the reason.
    """
    kind = SHARDS[_suffix(filename)]
    contents, mtime = look_into(kind, path)
    names, sizes = contents.names, contents.sizes
    left_out: Counter[str] = Counter()
    if kind == "tar":
        audio = pc.match_substring_regex(names, rf"(?i)({'|'.join(map(re.escape, AUDIO))})$")
        audio = pc.and_not(audio, pc.match_substring_regex(names, r"(^|/)\."))
        for other in names.filter(pc.invert(audio)).to_pylist():
            left_out[f"{_kind('members', other)} of tar shards"] += 1
        names, sizes = names.filter(audio), sizes.filter(audio)
    elif not len(names) and not contents.problem:
        left_out["Parquet files without a column audio"] += 1
    if contents.problem:
        log.warning("%s: %s", redact(path), contents.problem)
        names, sizes = pa.concat_arrays([names, pa.array(["*"])]), pa.concat_arrays([sizes, pa.array([-1])])
    inner = pc.binary_join_element_wise(kind, names, "://")
    columns = {
        "filename": pc.binary_join_element_wise(inner, filename, "::"),
        "path": pc.binary_join_element_wise(inner, path, "::"),
        "size": sizes,
        "mtime": pa.array(np.full(len(names), mtime)),
    }
    return pa.table(columns), left_out


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _kind(what: str, name: str) -> str:
    """A file's kind for messages: hidden, or by the ending of its name."""
    if "/." in "/" + name:
        return f"hidden {what}"
    return f"{what} *{_suffix(name)}" if _suffix(name) else f"{what} without an ending"


def names_below(folder: Folder, left_out: Counter[str], links: Links = OWN) -> Iterator[str]:
    """All files below a folder, as relative paths; links to folders are counted in `left_out` unless followed."""
    if not folder.is_local:
        yield from folder.files()
        return
    for current, files in walk(folder.path(), links, left_out):
        below = os.path.relpath(current, folder.path()) + "/"
        yield from ((below + item).removeprefix("./") for item in files)


def _is_wanted(name: str, left_out: Counter[str]) -> bool:
    if "/." in "/" + name or _suffix(name) not in (*AUDIO, *SHARDS):
        left_out[_kind("files", name)] += 1
        return False
    return True
