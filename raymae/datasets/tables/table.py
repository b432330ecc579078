"""Read a metadata table, CSV or Parquet, as rows of a clip table.

Columns: `filename` (relative to the table's folder) and, optionally, `scene_label` (empty = unlabelled; one class or
several: `raymae.datasets.labels`), `city`, `device`, `group` (recordings that belong together) and `split` (train, val,
pool = pre-training only, or any name beginning with test). `TableSettings` names other columns and another folder.
Values stay text: the device "007" is not 7. Tables may be local or at a URL.

Audio may be packed. A filename `tar://clip.flac::shard-000.tar` is a member of a tar file in the table's folder. A
Parquet table with a column `audio` (encoded files: binary, or the struct {bytes, path} of Hugging Face) holds the clips
itself; filename is then only a name and may be absent. A pool needs no table: a folder gives every recording below it,
loose or in shards, and a tar file gives all its members (side files with labels are not read).
"""

from __future__ import annotations

import csv
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymae.audio.containers import AUDIO, holds_audio
from raymae.audio.sources import look_into
from raymae.config import nearest, redact
from raymae.datasets.tables.corpus import log_left_out, read_folder, read_shard, some_kinds
from raymae.datasets.tables.delimited import find_delimiter, header_of, lines_of, read_text, records
from raymae.datasets.tables.header import no_column, no_filenames, repeated, some
from raymae.datasets.tables.locate import locate
from raymae.datasets.tables.parts import FIELDS, check_names, with_parts
from raymae.datasets.tables.settings import PLAIN, TableSettings
from raymae.datasets.tables.values import check_splits, with_folds, with_labels
from raymae.storage.folder import Folder
from raymae.storage.plain import check_plain

log = logging.getLogger(__name__)

_NAMED = pa.schema(
    [(name, pa.string()) for name in ("clip_id", "path", "scene_label", "city", "device", "group", "split", "source")]
    + [("weight", pa.float64()), ("size", pa.int64()), ("mtime", pa.float64())]
)
CLIPS = _NAMED.append(pa.field("content", pa.string()))
"""Schema of a clip table: size in bytes (-1: no such file), mtime in seconds since 1970, content as in `content_of`."""
ROWS = _NAMED.append(pa.field("row", pa.int64()))
"""Schema of the rows of a metadata table: each one's line in it, and nothing of its content."""
FOLD = pa.field("fold", pa.string())
"""One column more, where the table has folds."""
MOST_ROWS_PER_BYTE = 32
"""Rows of a Parquet table: names in a sequence, compressed as well as they can be, take a byte for eleven."""
LOCATED = ("path", "size", "mtime")


def read_table(url: str, *, pool: bool = False, weight: float = 1.0, settings: TableSettings = PLAIN) -> pa.Table:
    """One row (`ROWS`, `FOLD` where `settings` name a column of folds, and `FIELDS` of parts) per row of the table.

    With `pool`, all of them are for pre-training only. Missing (size -1) and empty (size 0) files keep their rows.
    Raises ValueError for a table that can't be read, and for rows without a usable filename, with a repeated filename,
    whose path leaves the folder of the recordings, whose split is unknown, or without a fold.
    """
    table = MetadataTable.open(url, settings=settings)
    rows = table.clips(tuple(name for name in settings.columns if not (pool and name == "split")), pool)
    rows = with_parts(table.name, with_labels(table.name, rows, settings))
    if pool:
        rows = rows.append_column("split", pa.repeat("pool", len(rows)))
    if settings.fold:
        rows = with_folds(table.name, rows, settings)
    check_splits(table.name, rows)
    split = pc.fill_null(rows["split"], "train")
    in_pool = pc.equal(split, "pool")
    dropped = pc.sum(pc.and_(in_pool, pc.is_valid(rows["scene_label"]))).as_py()
    if dropped:
        log.info("%s: labels not used because their clips are for pre-training only: %d", table.name, dropped)
    columns = {name: rows[name] for name in rows.column_names} | {
        "scene_label": pc.if_else(in_pool, pa.scalar(None, pa.string()), rows["scene_label"]),
        "split": split,
        "source": pa.repeat(table.source, len(rows)),
        "weight": pa.repeat(weight, len(rows)),
    }
    more = [*([FOLD] if settings.fold else []), *(field for field in FIELDS if field.name in columns)]
    schema = pa.schema([*ROWS, *more])
    return pa.table([columns[name] for name in schema.names], schema)


def holds_recordings(url: str) -> bool:
    """Whether a path or URL is a folder or a tar file: recordings without a table."""
    return MetadataTable.open(url).is_corpus


def read_filenames(url: str | Path, settings: TableSettings = PLAIN) -> list[str]:
    """Path or URL of every clip of a table, folder or shard, in its order; raises like `read_table`."""
    table = MetadataTable.open(str(url), ("filename",), settings)
    paths: list[str] = table.clips(("filename",), pool=True)["path"].to_pylist()
    return paths


@dataclass(frozen=True)
class MetadataTable:
    """A CSV or Parquet file and how it is read; or a folder or tar file instead."""

    name: str
    """Path or URL, for messages."""
    whole: Folder
    """The table itself as a folder, in case it is one."""
    folder: Folder
    """The folder of the table."""
    file: str
    """Name of the table in `folder`."""
    required: tuple[str, ...] = ("filename",)
    """Required columns, the filenames first."""
    settings: TableSettings = PLAIN
    """Its columns, and the folder that its filenames are relative to."""

    @classmethod
    def open(cls, url: str, required: tuple[str, ...] = (), settings: TableSettings = PLAIN) -> MetadataTable:
        """The table at a path or URL, with the columns that `settings` require if none are named."""
        if "://" not in url:
            url = os.path.abspath(os.path.expanduser(url))
        url = url.rstrip("/") or "/"
        folder, _, file = url.rpartition("/")
        return cls(redact(url), Folder(url), Folder(folder or "/"), file, required or settings.required, settings)

    @cached_property
    def _is_folder(self) -> bool:
        with self._reading():
            path = self.whole.path()
            return bool(not self.whole.fs.isfile(path) and self.whole.fs.isdir(path))  # over HTTP a page is both

    @property
    def is_corpus(self) -> bool:
        """Whether it is a folder or tar file instead of a table."""
        return self.file.lower().endswith(".tar") or self._is_folder

    @property
    def source(self) -> str:
        """The value of column source of its clips."""
        return self.file if self._is_folder else PurePosixPath(self.file).stem

    def clips(self, columns: tuple[str, ...], pool: bool) -> pa.Table:
        """The named columns as text (null where absent or empty), `path`, `size`, `mtime` and `row`.

        `row` is the line of a CSV file or the row of a Parquet file. Folders and tar files can only be a pool.
        """
        if not self.is_corpus:
            rows = self._read(columns)
            return rows if "path" in rows.column_names else self._located(rows)
        if not pool:
            raise ValueError(
                f"{self.name} can't be read: a folder or tar holds no labels; "
                "give it as data.pool_tables, or give a table with a column filename here"
            )
        clips = read_folder(self.name, self.whole, self.settings.links) if self._is_folder else self._read_tar()
        texts = [clips["filename"], *(pa.nulls(len(clips), pa.string()) for _ in columns[1:])]
        located = [clips[name] for name in LOCATED]
        return pa.table([*texts, *located, pa.array(range(1, len(clips) + 1))], [*columns, *LOCATED, "row"])

    def _located(self, rows: pa.Table) -> pa.Table:
        one = self.settings
        if one.suffix:
            names = pc.binary_join_element_wise(rows["filename"], one.suffix, "")
            rows = rows.set_column(rows.column_names.index("filename"), "filename", names)
        return locate(self.name, one.audio_folder(self.folder), rows, one.links, one.filename, one.place)

    def header(self) -> list[str]:
        """The names of its columns; none for a folder or tar file."""
        if self.file.lower().endswith(".tar") or self._is_folder:
            return []
        with self._open() as file:
            if file.read(4) == b"PAR1":
                return list(pq.ParquetFile(file).schema_arrow.names)
            file.seek(0)
            data = file.read()
        return header_of(data, find_delimiter(data, self._names(self.required)))

    def _names(self, columns: Iterable[str]) -> list[str]:
        """The table's names of some columns."""
        return [self.settings.name_of(column) for column in columns]

    def texts(self, columns: tuple[str, ...]) -> pa.Table:
        """The named columns as text and `row`, as in `clips`, without looking up the files."""
        return self._read(columns).select([*columns, "row"])

    def _read_tar(self) -> pa.Table:
        clips, left_out = read_shard(self.file, self._path)
        if not pc.any(pc.greater_equal(clips["size"], 0)).as_py():
            problem = look_into("tar", self._path)[0].problem or f"no audio ({', '.join(AUDIO)}) in it"
            problem += f"; it holds {some_kinds(left_out)}" if left_out.total() else ""
            raise ValueError(f"{self.name} can't be read: {problem}")
        log_left_out(self.name, left_out)
        return clips

    @property
    def _path(self) -> str:
        path = self.folder.path(self.file)
        return os.path.realpath(path) if self.folder.is_local else str(self.folder.fs.unstrip_protocol(path))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:  # its text is the path as fsspec splits it, including credentials
            hint = nearest(self.file, self.folder.names()) if self.folder.is_local else ""
            raise ValueError(f"{self.name} can't be read: there is no such file{hint}") from None
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(f"{self.name} can't be read: {redact(str(error))}") from None

    def _open(self) -> BinaryIO:
        with self._reading():
            if self.folder.is_local:
                status = os.stat(self.folder.path(self.file))
                if not stat.S_ISREG(status.st_mode):
                    raise ValueError("it is not a regular file")
                if not status.st_size:  # or one of the kernel's, which may never end
                    raise ValueError("it is empty")
            return self.folder.open(self.file)

    def _read(self, columns: tuple[str, ...]) -> pa.Table:
        data = b""
        try:
            with self._open() as file:
                if file.read(4) == b"PAR1":
                    rows = self._read_parquet(file, columns)
                else:
                    file.seek(0)
                    data = file.read()
                    rows = self._read_csv(data, columns)
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
        check_names(self.name, rows, self.settings.filename)
        return rows

    def _read_csv(self, data: bytes, columns: tuple[str, ...]) -> pa.Table:
        data.decode()
        delimiter = find_delimiter(data, self._names(dict.fromkeys((*self.required, *columns))))
        _, header = next(records(data, delimiter), (1, []))
        known = self._known(header, columns, packed=False)
        rows = read_text(data, delimiter, self._names(known))
        texts = dict(zip(known, rows.columns, strict=True))
        return _complete(texts, columns, lines_of(data, delimiter, len(rows)))

    def _read_parquet(self, file: BinaryIO, columns: tuple[str, ...]) -> pa.Table:
        table = pq.ParquetFile(file)
        count, size = table.metadata.num_rows, file.seek(0, os.SEEK_END)
        if count > MOST_ROWS_PER_BYTE * size:  # a few repeated bytes would fill the memory
            raise ValueError(f"{self.name} can't be read: it claims {count} rows in {size} bytes")
        packed = holds_audio(table.schema_arrow)
        known = self._known(table.schema_arrow.names, columns, packed)
        names = self._names(known)
        check_plain(pa.schema([table.schema_arrow.field(name) for name in names]), self.name)
        rows = table.read(columns=names).cast(pa.schema([(name, pa.string()) for name in names]))
        empty = pa.scalar(None, pa.string())
        texts = {
            name: pc.if_else(pc.equal(rows[column], ""), empty, rows[column])
            for name, column in zip(known, names, strict=True)
        }
        if packed:
            clips, _ = read_shard(self.file, self._path)
            texts = {name: clips[name] for name in ("filename", *LOCATED)} | texts
        rows = range(1, len(texts["filename"]) + 1)
        return _complete(texts, (*columns, *LOCATED) if packed else columns, rows)

    def _known(self, header: list[str], columns: tuple[str, ...], packed: bool) -> list[str]:
        """The `columns` that the table has; columns that are not used are logged."""
        names, there = {column: self.settings.name_of(column) for column in columns}, set(header)
        if names["filename"] not in there and not packed:
            raise no_filenames(self.name, header, names["filename"], self.settings.own)
        for column in self.required:
            if (name := self.settings.name_of(column)) not in there and column != "filename":
                raise no_column(self.name, header, name, label=self.settings.own and column == "scene_label")
        if twice := repeated(header, names.values()):
            raise ValueError(f"{self.name} has the column {twice[0]} more than once")
        used = set(names.values())
        unused = [name for name in header if name not in used and not (packed and name == "audio")]
        if unused:
            log.info("%s: columns not used: %s (used are %s)", self.name, some(unused), ", ".join(names.values()))
        return [column for column, name in names.items() if name in there]


def _complete(texts: dict[str, pa.ChunkedArray], columns: tuple[str, ...], lines: Iterable[int]) -> pa.Table:
    rows = pa.array(lines, pa.int64())
    empty = pa.nulls(len(rows), pa.string())
    return pa.table([*(texts.get(name, empty) for name in columns), rows], [*columns, "row"])
