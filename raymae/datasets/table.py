"""Any metadata table, CSV or Parquet, as rows of a clip table.

Columns: `filename` (relative to the table's folder) and, where known, `scene_label` (empty = unlabelled), `city`,
`device`, `group` (recordings that belong together) and `split` (train, val, pool = pre-training only, or any name
beginning with test). Values stay text: the device "007" is not 7. Local tables and tables at URLs work alike.
"""

from __future__ import annotations

import csv
import difflib
import io
import logging
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from raymae.artifacts import Folder
from raymae.config import redact

log = logging.getLogger(__name__)

TEXT_COLUMNS = ("filename", "scene_label", "city", "device", "group", "split")
CLIPS = pa.schema(
    [(name, pa.string()) for name in ("clip_id", "path", "scene_label", "city", "device", "group", "split", "source")]
    + [("weight", pa.float64()), ("size", pa.int64()), ("mtime", pa.float64())]
)
"""A clip table: size in bytes (-1: no such file), mtime in seconds since 1970."""
ROWS = CLIPS.append(pa.field("row", pa.int64()))
"""A clip table whose rows still know their line in the table they came from."""

EXAMPLES = 3


def read_table(url: str, *, pool: bool = False, weight: float = 1.0) -> pa.Table:
    """One row (`ROWS`) per clip of the table, in its order; with `pool`, all of them serve pre-training alone.

    Files that are missing (size -1) or empty (size 0) keep their rows. Raises ValueError for a table that can't be
    read, and for rows without a usable filename, with a filename that occurs twice, whose path leaves the table's
    folder or whose split is unknown.
    """
    table = MetadataTable.open(url)
    rows = table.locate(table.read(tuple(name for name in TEXT_COLUMNS if not (pool and name == "split"))))
    if pool:
        rows = rows.append_column("split", pa.repeat("pool", len(rows)))
    known = pc.match_substring_regex(pc.fill_null(rows["split"], "train"), "^(train|val|pool|test.*)$")
    reject(table.name, rows, pc.invert(known), "split", "be train, val, pool (pre-training only) or begin with test")
    split = pc.fill_null(rows["split"], "train")
    in_pool = pc.equal(split, "pool")
    dropped = pc.sum(pc.and_(in_pool, pc.is_valid(rows["scene_label"]))).as_py()
    if dropped:
        log.info("%s: labels not used because their clips serve pre-training alone: %d", table.name, dropped)
    columns = {name: rows[name] for name in rows.column_names} | {
        "clip_id": rows["filename"],
        "scene_label": pc.if_else(in_pool, pa.scalar(None, pa.string()), rows["scene_label"]),
        "split": split,
        "source": pa.repeat(PurePosixPath(table.file).stem, len(rows)),
        "weight": pa.repeat(weight, len(rows)),
    }
    return pa.table([columns[name] for name in ROWS.names], ROWS)


def read_filenames(url: str | Path) -> list[str]:
    """Absolute path or URL of every file that the table names, in its order; the errors of `read_table`."""
    table = MetadataTable.open(str(url))
    paths: list[str] = table.locate(table.read(("filename",)))["path"].to_pylist()
    return paths


@dataclass(frozen=True)
class MetadataTable:
    """A CSV or Parquet file and the folder that its filenames are relative to."""

    name: str
    folder: Folder
    file: str

    @classmethod
    def open(cls, url: str) -> MetadataTable:
        """The table at a path or URL."""
        if "://" not in url:
            url = os.path.abspath(os.path.expanduser(url))
        folder, _, file = url.rpartition("/")
        return cls(redact(url), Folder(folder or "/"), file)

    def read(self, columns: tuple[str, ...]) -> pa.Table:
        """The named columns as text (null where absent or empty) and `row`: the line of the file, or row of Parquet."""
        data = self._bytes()
        try:
            rows = self._read_parquet(data, columns) if data[:4] == b"PAR1" else self._read_csv(data, columns)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"{self.name}, row {line}: byte {data[error.start]:#x} is not UTF-8; save it as UTF-8"
            ) from None
        except (pa.ArrowException, OSError, csv.Error) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.name} can't be read as a CSV or Parquet table: {reason}") from None
        if not len(rows):
            raise ValueError(f"{self.name} has no rows")
        reject(self.name, rows, pc.is_null(rows["filename"]), "filename", "name an audio file")
        reject(self.name, rows, repeats(rows["filename"]), "filename", "be a name that no earlier row has")
        return rows

    def _bytes(self) -> bytes:
        try:
            return self.folder.read_bytes(self.file)
        except FileNotFoundError:  # its text is the path as fsspec splits it, credentials and all
            raise ValueError(f"{self.name} can't be read: there is no such file") from None
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(f"{self.name} can't be read: {redact(str(error))}") from None

    def _read_csv(self, data: bytes, columns: tuple[str, ...]) -> pa.Table:
        data.decode()
        first_line = data.partition(b"\n")[0]
        delimiter = "\t" if first_line.count(b"\t") > first_line.count(b",") else ","
        _, header = next(_records(data, delimiter), (1, []))
        known = self._known(header, columns)
        rows = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(use_threads=False),  # so that a malformed row's error knows its number
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=known,
                column_types=dict.fromkeys(known, pa.string()),
                null_values=[""],  # Arrow's default list would turn a label "NA" into unlabelled
                strings_can_be_null=True,
            ),
        )
        return _complete(rows, columns, self._lines(data, delimiter, len(rows)))

    def _read_parquet(self, data: bytes, columns: tuple[str, ...]) -> pa.Table:
        file = pq.ParquetFile(pa.BufferReader(data))
        known = self._known(file.schema_arrow.names, columns)
        rows = file.read(columns=known).cast(pa.schema([(name, pa.string()) for name in known]))
        empty_to_null = [pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column) for column in rows]
        return _complete(pa.table(empty_to_null, known), columns, range(1, len(rows) + 1))

    def _lines(self, data: bytes, delimiter: str, count: int) -> Iterable[int]:
        """The line on which every row begins; only blank lines and line breaks within quotes need a closer look."""
        if data.count(b"\n") + (not data.endswith(b"\n")) == count + 1:
            return range(2, count + 2)
        return [line for line, _ in _records(data, delimiter)][1:]

    def _known(self, header: list[str], columns: tuple[str, ...]) -> list[str]:
        """The columns that the table has; the others are named in the log."""
        if "filename" not in header:
            near = difflib.get_close_matches("filename", [name.lower() for name in header], n=1, cutoff=0.5)
            meant = [name for name in header if name.lower() in near or name.lower() in ("file", "path", "audio")]
            hint = f"; rename {meant[0]!r}?" if meant else ""
            raise ValueError(
                f"{self.name} has no column filename; its columns are {', '.join(map(repr, header))}{hint}"
            )
        twice = sorted({name for name in header if header.count(name) > 1 and name in columns})
        if twice:
            raise ValueError(f"{self.name} has the column {twice[0]} more than once")
        unused = [name for name in header if name not in columns]
        if unused:
            log.info("%s: columns not used: %s (used are %s)", self.name, ", ".join(unused), ", ".join(columns))
        return [name for name in columns if name in header]

    def locate(self, rows: pa.Table) -> pa.Table:
        """Append `path`, `size` and `mtime` of every file; no path may leave the table's folder."""
        no_file = pc.match_substring_regex(rows["filename"], r"(^|/)\.{0,2}$|\x00")
        reject(self.name, rows, no_file, "filename", "name an audio file")
        of_row = pc.replace_substring_regex(rows["filename"], "[^/]*$", "")
        names = pc.replace_substring_regex(rows["filename"], "(?s)^.*/", "")
        below = pc.unique(of_row)
        root = self._resolve("")
        folders = [self._resolve(name) for name in below.to_pylist()]
        number = pc.index_in(of_row, value_set=below)
        outside = pa.array([not _inside(root, folder) for folder in folders])
        inside_only = f"stay in {redact(self.folder.url)}, the table's own folder"
        reject(self.name, rows, outside.take(number.combine_chunks()), "filename", inside_only)
        of_row = pa.array(folders, pa.string()).take(number.combine_chunks())
        paths = pc.binary_join_element_wise(of_row, names.combine_chunks(), "/")
        files = self._scan(root, set(folders), set(paths.to_pylist()))
        found = pc.index_in(paths, value_set=files["path"])
        reject(self.name, rows, pc.fill_null(files["outside"].take(found), False), "filename", inside_only)
        size = pc.fill_null(files["size"].take(found), -1)
        missing = pc.sum(pc.less(size, 0)).as_py()
        if missing:
            log.warning("%s: %d of %d files are missing", self.name, missing, len(rows))
        if not self.folder.is_local:
            paths = pa.array([self.folder.fs.unstrip_protocol(path) for path in paths.to_pylist()], pa.string())
        rows = rows.append_column("path", paths)
        rows = rows.append_column("size", size)
        return rows.append_column("mtime", pc.fill_null(files["mtime"].take(found), 0.0))

    def _resolve(self, below: str) -> str:
        """A folder below the table's, with `..` and symbolic links followed."""
        path = os.path.join(self.folder.path() + "/", below)
        return os.path.realpath(path) if self.folder.is_local else posixpath.normpath(path)

    def _scan(self, root: str, folders: set[str], wanted: set[str]) -> pa.Table:
        found = _scan_local(root, folders, wanted) if self.folder.is_local else self._scan_remote(wanted)
        names = ("path", "size", "mtime", "outside")
        types = (pa.string(), pa.int64(), pa.float64(), pa.bool_())
        columns = zip(*found, strict=True) if found else ([],) * 4
        return pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names)

    def _scan_remote(self, wanted: set[str]) -> list[tuple[str, int, float, bool]]:
        """One listing of everything below the table: object stores answer a thousand names at a time."""
        found = []
        for path, info in self.folder.fs.find(self.folder.path(), detail=True).items():
            if path in wanted:
                changed = next(
                    (info[key] for key in ("mtime", "LastModified", "last_modified", "created") if key in info), 0
                )
                seconds = changed.timestamp() if isinstance(changed, datetime) else float(changed)
                found.append((path, info["size"], seconds, False))
        return found


def _scan_local(root: str, folders: set[str], wanted: set[str]) -> list[tuple[str, int, float, bool]]:
    """Path, size, mtime and "leads out of root" of the wanted files; a listing knows links without following paths."""
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
                outside = entry.is_symlink() and not _inside(root, os.path.realpath(path))
                try:
                    status = entry.stat()
                    found.append((path, status.st_size, status.st_mtime, outside))
                except OSError:  # a link to nothing
                    found.append((path, -1, 0.0, outside))
    return found


def _inside(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _records(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, each with the line that it begins on; blank lines are none."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), delimiter=delimiter)
    end = 0
    for record in reader:
        if record:
            yield end + 1, record
        end = reader.line_num


def _complete(rows: pa.Table, columns: tuple[str, ...], lines: Iterable[int]) -> pa.Table:
    empty = pa.nulls(len(rows), pa.string())
    values = [rows[name] if name in rows.column_names else empty for name in columns]
    return pa.table([*values, pa.array(lines, pa.int64())], [*columns, "row"])


def repeats(values: pa.ChunkedArray) -> pa.Array:
    """Which rows hold a value that an earlier row holds."""
    first = pc.index_in(values, value_set=values).to_numpy()
    return pa.array(first < np.arange(len(first)))


def reject(name: str, rows: pa.Table, wrong: pa.Array, column: str, right: str) -> None:
    """Raise ValueError with the first examples where any row is wrong."""
    bad = rows.filter(wrong)
    if len(bad):
        first = bad.select(["row", column]).slice(0, EXAMPLES).to_pylist()
        examples = ", ".join(f"row {item['row']}: {item[column] or ''!r}" for item in first)
        more = f" and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
        raise ValueError(f"{name}, column {column}, {examples}{more}: should {right}")
