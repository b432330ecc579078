"""Locate the files that a table names: path, size and modification time of each."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.containers import PACKED
from raymae.audio.sources import look_into
from raymae.config import redact
from raymae.datasets.tables.links import FOLLOW, OWN, Links, inside
from raymae.datasets.tables.unicode_forms import other_paths, same_names, with_other_names
from raymae.storage.folder import Folder, change_time

log = logging.getLogger(__name__)

EXAMPLES = 3
LISTINGS = 16
"""Shards listed concurrently, as listing one at a URL is mostly waiting."""
OWN_FOLDER = "the table's own folder"
"""What filenames are relative to, for messages."""


def locate(
    name: str,
    folder: Folder,
    rows: pa.Table,
    links: Links = OWN,
    column: str = "filename",
    place: str = OWN_FOLDER,
) -> pa.Table:
    """Append `path`, `size` and `mtime` of the files or shard members in column filename.

    A missing one gets size -1; one that is stored in another Unicode form is found, if no file has the exact name.
    `column` is the table's name of filename, and `place` says what the folder is, for messages. Raises ValueError for
    an invalid filename and for a path that leaves the folder, by a link that `links` doesn't follow, too.
    """
    where = Place(name, folder, links, column, place)
    filename = rows["filename"].combine_chunks()
    packed = pc.extract_regex(filename, PACKED)
    inner, outer = pc.struct_field(packed, "inner"), pc.coalesce(pc.struct_field(packed, "outer"), filename)
    known = pc.match_substring_regex(filename, r"(?s)^(tar://.+|parquet://[^/]+/[1-9][0-9]{0,17})::.+$")
    address = pc.match_substring_regex(filename, "^(tar|parquet)://")
    right = "be tar://member::shard.tar or parquet://column/row::table.parquet"
    reject(name, rows, pc.and_not(address, known), "filename", right, column)
    inner = pc.replace_substring_regex(inner, r"^tar://(\./)+", "tar://")
    files = _locate_files(where, rows, outer)
    size = files["size"]
    if inner.null_count < len(inner):
        inner, size = _find_members(name, inner, files)
    lost = filename.filter(pc.less(size, 0))
    if len(lost):
        examples = ", ".join(lost[:EXAMPLES].to_pylist()) + (", …" if len(lost) > EXAMPLES else "")
        log.warning("%s: %d of %d files are missing: %s", name, len(lost), len(rows), examples)
    path = files["path"].combine_chunks()
    rows = rows.append_column("path", pc.coalesce(pc.binary_join_element_wise(inner, path, "::"), path))
    return rows.append_column("size", size).append_column("mtime", files["mtime"])


@dataclass(frozen=True)
class Place:
    """Where a table's recordings are."""

    table: str
    """Name of the table, for messages."""
    folder: Folder
    links: Links
    column: str
    """The table's name of the column of filenames."""
    what: str
    """What the folder is, for messages."""

    def refuse(self, rows: pa.Table, wrong: pa.Array, by_link: bool = False) -> None:
        """Raise ValueError for rows (n,) that lie outside of the folder, by their names or by a link."""
        right = f"stay in {redact(self.folder.url)}, {self.what}"
        outside = [os.path.dirname(one) for one in rows.filter(wrong)["filename"].to_pylist() if os.path.isabs(one)]
        if outside and self.folder.is_local and "--data.audio-root" in self.what:
            right += f"; --data.audio-root {shlex.quote(os.path.commonpath(outside))} reads them there"
        right += f", but a link leads out of it; {FOLLOW} follows links" if by_link else ""
        reject(self.table, rows, wrong, "filename", right, self.column)


def _find_members(name: str, inner: pa.Array, files: pa.Table) -> tuple[pa.Array, pa.Array]:
    """`inner` with every member's name as it is stored, and the sizes of the members, or files where it is null."""
    size = files["size"].to_numpy().copy()
    container = pc.if_else(pc.is_valid(inner), files["path"].combine_chunks(), None).dictionary_encode()
    number = pc.fill_null(container.indices, -1).to_numpy()
    order = np.argsort(number, kind="stable")
    borders = np.searchsorted(number[order], np.arange(len(container.dictionary) + 1))
    urls = container.dictionary.to_pylist()
    kinds = [inner[int(row)].as_py().partition("://")[0] for row in order[borders[:-1]]]
    stored: dict[int, str] = {}
    with ThreadPoolExecutor(LISTINGS) as pool:
        listed = pool.map(look_into, kinds, urls)
        for url, start, stop, (contents, _) in zip(urls, borders[:-1], borders[1:], listed, strict=True):
            rows = order[start:stop]
            if contents.problem and (size[rows] >= 0).any():
                log.warning("%s: %s: %s", name, redact(url), contents.problem)
            members = pc.replace_substring_regex(inner.take(pa.array(rows)), "^[a-z]+://", "")
            found = pc.index_in(members, value_set=contents.names)
            if found.null_count:
                found, others = with_other_names(members, found, contents.names)
                stored |= {int(rows[place]): member for place, member in others.items()}
            size[rows] = pc.fill_null(contents.sizes.take(found), -1).to_numpy()
    if stored:
        names = inner.to_pylist()
        for row, member in stored.items():
            names[row] = f"tar://{member}"
        inner = pa.array(names, pa.string())
    return inner, pa.array(size)


def _locate_files(place: Place, rows: pa.Table, filename: pa.Array) -> pa.Table:
    """`path`, `size` and `mtime` of files below a folder, in the order of `filename` (n,)."""
    folder = place.folder
    no_file = pc.match_substring_regex(filename, r"(^|/)\.{0,2}$|\x00")
    reject(place.table, rows, no_file, "filename", "name an audio file", place.column)
    if "://" in folder.url:
        filename = pc.replace_substring_regex(filename, f"^{re.escape(folder.url.rstrip('/'))}/+", "")
    place.refuse(rows, pc.match_substring_regex(filename, r"^[A-Za-z][A-Za-z0-9+.-]*://"))
    of_row = pc.replace_substring_regex(filename, "[^/]*$", "")
    names = pc.replace_substring_regex(filename, "(?s)^.*/", "")
    below = pc.unique(of_row)
    root = _resolve(folder, "")
    folders = [_resolve(folder, path) for path in below.to_pylist()]
    number = pc.index_in(of_row, value_set=below)
    by_name = [
        not inside(root, path) and _leaves(folder, name) for path, name in zip(folders, below.to_pylist(), strict=True)
    ]
    place.refuse(rows, pa.array(by_name, pa.bool_()).take(number))
    outside = pa.array([not _is_followed(root, path, place.links) for path in folders], pa.bool_())
    place.refuse(rows, outside.take(number), by_link=True)
    paths = pc.binary_join_element_wise(pa.array(folders, pa.string()).take(number), names, "/")
    paths, files = _find(place, root, set(folders), paths)
    found = pc.index_in(paths, value_set=files["path"])
    place.refuse(rows, pc.fill_null(files["outside"].take(found), False), by_link=True)
    if not folder.is_local:
        paths = pa.array([folder.fs.unstrip_protocol(path) for path in paths.to_pylist()], pa.string())
    size, mtime = pc.fill_null(files["size"].take(found), -1), pc.fill_null(files["mtime"].take(found), 0.0)
    return pa.table({"path": paths, "size": size, "mtime": mtime})


def _find(place: Place, root: str, folders: set[str], paths: pa.Array) -> tuple[pa.Array, pa.Table]:
    """The paths (n,) as they are stored, and path, size, mtime and whether it is outside, of those that exist."""
    wanted, folder, links = set(paths.to_pylist()), place.folder, place.links
    if folder.is_local:
        found = _scan_local(root, folders, wanted, links)
        others = other_paths(root, wanted - {one[0] for one in found})
        stored = {
            path for path in others.values() if _is_followed(root, os.path.realpath(os.path.dirname(path)), links)
        }
        known = {one[0] for one in found}
        found += _scan_local(root, {os.path.dirname(path) for path in stored}, stored - known, links)
    else:
        below = folder.fs.find(folder.path(), detail=True)  # object stores list a thousand names per request
        others = same_names(wanted - below.keys(), below)
        found = _of_listing(below, wanted | set(others.values()))
    if others:
        paths = pa.array([others.get(path, path) for path in paths.to_pylist()], pa.string())
    return paths, _table(found)


def _resolve(folder: Folder, below: str) -> str:
    """The path of a folder below another, with `..` and symbolic links resolved."""
    path = os.path.join(folder.path() + "/", below)
    return os.path.realpath(path) if folder.is_local else posixpath.normpath(path)


def _leaves(folder: Folder, below: str) -> bool:
    """Whether a path leaves its folder by its name alone, links aside."""
    root = posixpath.normpath(folder.path() + "/")
    return not inside(root, posixpath.normpath(posixpath.join(root, below)))


def _table(found: list[tuple[str, int, float, bool]]) -> pa.Table:
    names = ("path", "size", "mtime", "outside")
    types = (pa.string(), pa.int64(), pa.float64(), pa.bool_())
    columns = zip(*found, strict=True) if found else ([],) * 4
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names)


def _of_listing(below: Mapping[str, dict[str, Any]], wanted: set[str]) -> list[tuple[str, int, float, bool]]:
    """Path, size, mtime and False of the wanted files of a listing."""
    return [(path, info["size"], change_time(info), False) for path, info in below.items() if path in wanted]


def _scan_local(root: str, folders: set[str], wanted: set[str], links: Links) -> list[tuple[str, int, float, bool]]:
    """Path, size, mtime and whether it is a link that isn't followed, of each wanted file.

    Links are recognised in the folder listing, so that not every path must be resolved.
    """
    found = []
    for folder in folders:
        try:
            entries = os.scandir(folder)
        except OSError:  # its files count as missing
            continue
        with entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if path not in wanted:
                    continue
                outside = entry.is_symlink() and not _is_followed(root, os.path.realpath(path), links)
                try:
                    status = entry.stat()
                    found.append((path, status.st_size, status.st_mtime, outside))
                except OSError:  # a broken link
                    found.append((path, -1, 0.0, outside))
    return found


def _is_followed(root: str, path: str, links: Links) -> bool:
    return inside(root, path) or links.allow(path)


def reject(name: str, rows: pa.Table, wrong: pa.Array, column: str, right: str, shown: str | None = None) -> None:
    """Raise ValueError with the first examples if any row is `wrong` (n,); `right` completes "should …".

    `shown` is the table's own name of the column, if it is another.
    """
    bad = rows.filter(wrong)
    if len(bad):
        first = bad.select(["row", column]).slice(0, EXAMPLES).to_pylist()
        examples = ", ".join(f"row {item['row']}: {item[column] or ''!r}" for item in first)
        more = f" and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
        raise ValueError(f"{name}, column {shown or column}, {examples}{more}: should {right}")
