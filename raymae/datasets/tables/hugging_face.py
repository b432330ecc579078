"""Audio tables as Hugging Face's hub lays them out: Parquet files that hold the recordings, in a folder or at hf://.

The name of a file or of its folder names its split: `data/train-00000-of-00004.parquet`, `validation/0000.parquet`. The
column `audio` holds the encoded files, {bytes, path}. The names of classes are in the files' metadata (ClassLabel);
labels are text, numbers of classes, or lists of either.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymae.audio.containers import AUDIO, holds_audio
from raymae.config import redact
from raymae.datasets.labels import SEPARATOR
from raymae.datasets.tables.corpus import log_left_out, names_below, read_shard
from raymae.datasets.tables.header import some
from raymae.datasets.tables.hub_labels import METADATA, choose_column, class_labels, label_texts
from raymae.datasets.tables.locate import LISTINGS, reject
from raymae.datasets.tables.parts import repeats
from raymae.datasets.tables.table import LOCATED, MOST_ROWS_PER_BYTE, ROWS
from raymae.storage.folder import Folder
from raymae.storage.hub import is_on_hub, reading
from raymae.storage.plain import check_plain

log = logging.getLogger(__name__)

SPLITS = {"train": "train|training", "val": "validation|valid|val|dev", "test": "test|testing|eval|evaluation"}
"""Words in a path that name a split, as the hub's own library reads them."""
TEXTS = ("filename", "city", "device", "group", "split")


def is_hub_table(url: str) -> bool:
    """Whether a path or URL is a folder of Parquet files without loose recordings, or a Parquet file of the hub's.

    Raises ValueError where the hub can't be reached; of other places the reader of tables says what is wrong.
    """
    try:
        with reading(url):
            whole = opened(url)
            if whole.fs.isfile(whole.path()):
                return is_table(url) and METADATA in metadata_of(whole)
            is_folder = whole.fs.isdir(whole.path())
            if is_on_hub(url) and not is_folder:
                raise FileNotFoundError(url)
            names = list(names_below(whole, Counter())) if is_folder else []
    except (OSError, ImportError, ValueError):
        if is_on_hub(url):
            raise
        return False
    return any(map(is_table, names)) and not any(name.lower().endswith((*AUDIO, ".tar")) for name in names)


def opened(url: str) -> Folder:
    """A path or URL as a folder; it may be a file."""
    path = url.rstrip("/") or "/"
    return Folder(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def is_table(name: str) -> bool:
    """Whether a file's name is that of a Parquet table."""
    return name.lower().endswith(".parquet") and "/." not in f"/{name}"


def metadata_of(file: Folder) -> dict[bytes, bytes]:
    """The metadata in a Parquet file's schema; none for a damaged file."""
    try:
        with file.fs.open(file.path(), "rb") as content:
            return pq.read_schema(content).metadata or {}
    except (pa.ArrowException, OSError):  # the reader of tables says what is wrong with it
        return {}


def read_hub_table(url: str, label_column: str = "scene_label", separator: str = SEPARATOR) -> pa.Table:
    """One row (`ROWS`) per clip of all Parquet files, in the order of their names; an empty label means unlabelled.

    Without a column scene_label, the labels are those of the only column of classes (ClassLabel). clip_id is the column
    filename, or else the path in the column audio, where they are unique; else the row's address. Raises ValueError for
    files without audio or without the column of labels, for several configurations, and for labels that are no classes.
    """
    name, whole = redact(url.rstrip("/")), opened(url)
    with reading(url), ThreadPoolExecutor(LISTINGS) as pool:
        folder, files = files_of(name, whole)
        parts = list(pool.map(lambda file: Part.open(folder, file), files))
        column = choose_column(name, {part.name: part.schema for part in parts}, label_column)
        if column is None:
            log.warning("%s has no column of classes, its clips are unlabelled; --data.label-column names one", name)
        elif column != label_column:
            log.info("%s: the labels are those of the column %s", name, column)
        rows = pa.concat_tables(pool.map(lambda part: part.rows(column, separator), parts))
    given = {item: rows[item] for item in rows.column_names} | {
        "clip_id": clip_ids(rows),
        "source": pa.repeat(name.rpartition("/")[2], len(rows)),
        "weight": pa.repeat(1.0, len(rows)),
    }
    return pa.table([given[item] for item in ROWS.names], ROWS)


def files_of(name: str, whole: Folder) -> tuple[Folder, list[str]]:
    """A folder, and the Parquet files of a data set below it; ValueError for those of several configurations."""
    if whole.fs.isfile(whole.path()):
        parent, _, file = whole.url.rpartition("/")
        return Folder(parent or "/"), [file]
    left_out: Counter[str] = Counter()
    below = sorted(names_below(whole, left_out))
    files = [file for file in below if is_table(file)]
    left_out.update(f"files *{os.path.splitext(file)[1]}" for file in below if not is_table(file))
    log_left_out(name, left_out)
    configurations = sorted({configuration_of(file) for file in files})
    if len(configurations) > 1:  # they commonly hold the same recordings
        addresses = some(f"{name}/{one}".rstrip("/") for one in configurations)
        raise ValueError(f"{name} holds several configurations, name one of them: {addresses}")
    return whole, files


def split_of(file: str) -> str | None:
    """The split that a file's path names, its last word counting; None where it names none."""
    found = [
        (match.start(), split)
        for split, words in SPLITS.items()
        for match in re.finditer(rf"(?<![a-z])({words})(?![a-z])", file.lower())
    ]
    return max(found)[1] if found else None


def configuration_of(file: str) -> str:
    """The folder of a file, without the folder of its split."""
    folders = file.split("/")[:-1]
    return "/".join(folders[:-1] if folders and split_of(folders[-1]) else folders)


@dataclass(frozen=True)
class Part:
    """One Parquet file of a data set."""

    folder: Folder
    file: str
    """Its name below the folder."""
    schema: pa.Schema

    @classmethod
    def open(cls, folder: Folder, file: str) -> Part:
        """Read the schema of a file; ValueError for a damaged one and for one without a column audio."""
        name = redact((folder / file).url)
        try:
            with folder.open(file) as content:
                schema = pq.read_schema(content)
        except pa.ArrowException as error:
            raise ValueError(f"{name} can't be read as a Parquet table: {' '.join(str(error).split())}") from None
        if not holds_audio(schema):
            raise ValueError(
                f"{name} has no column audio of encoded files, binary or {{bytes, path}}; its columns are "
                f"{some(map(repr, schema.names))}"
            )
        return cls(folder, file, schema)

    @property
    def name(self) -> str:
        """Its path or URL, for messages."""
        return redact((self.folder / self.file).url)

    def rows(self, label: str | None, separator: str) -> pa.Table:
        """Its rows with the columns of `ROWS` but clip_id, source and weight, and filename, audio_path and address."""
        texts = [item for item in TEXTS if item in self.schema.names and item != label]
        table, count = self._read([*texts, *([label] if label else [])])
        columns = {item: self._text(table, item) for item in texts}
        address = self.folder.path(self.file)
        if not self.folder.is_local:
            address = str(self.folder.fs.unstrip_protocol(address))
        clips, _ = read_shard(self.file, address)
        if len(clips) != count:
            raise ValueError(f"{self.name} can't be read: {len(clips)} of its {count} recordings can be listed")
        columns |= {item: clips[item] for item in LOCATED}
        columns |= {"address": clips["filename"], "row": pa.array(range(1, count + 1), pa.int64())}
        if "audio" in table.column_names:
            columns["audio_path"] = pc.struct_field(table["audio"].combine_chunks(), "path").cast(pa.string())
        columns["split"] = self._splits(columns)
        if label:
            classes, values = class_labels(self.name, self.schema).get(label), table[label].combine_chunks()
            columns["scene_label"] = label_texts(self.name, values, label, classes, separator)
        empty = pa.nulls(count, pa.string())
        wanted = (*TEXTS, "scene_label", "audio_path", "address", "row", *LOCATED)
        return pa.table({item: columns.get(item, empty) for item in wanted})

    def _read(self, columns: list[str]) -> tuple[pa.Table, int]:
        """Some columns, with the paths of the audio, and the number of rows."""
        kind = self.schema.field("audio").type
        paths = ["audio.path"] if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else []
        with self.folder.open(self.file) as content:
            table = pq.ParquetFile(content)
            count, size = table.metadata.num_rows, content.seek(0, os.SEEK_END)
            if count > MOST_ROWS_PER_BYTE * size:  # a few repeated bytes would fill the memory
                raise ValueError(f"{self.name} can't be read: it claims {count} rows in {size} bytes")
            check_plain(pa.schema([self.schema.field(item) for item in columns]), self.name)
            try:
                return table.read(columns=[*columns, *paths]), count
            except (pa.ArrowException, OSError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{self.name} can't be read as a Parquet table: {reason}") from None

    def _text(self, table: pa.Table, column: str) -> pa.ChunkedArray:
        try:
            values = table[column].cast(pa.string())
        except pa.ArrowException:
            raise ValueError(f"{self.name}, column {column}: should hold text, not {table[column].type}") from None
        return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)

    def _splits(self, columns: dict[str, pa.ChunkedArray]) -> pa.ChunkedArray:
        """The split that the file's name says, or else the column split, or else train."""
        count, split = len(columns["row"]), split_of(self.file)
        if split or "split" not in columns:
            if not split:
                log.info("%s: its name names no split, so its clips are of split train", self.name)
            return pa.repeat(split or "train", count)
        values = pc.fill_null(columns["split"], "train")
        wrong = pc.invert(pc.match_substring_regex(values, "^(train|val|pool|test.*)$"))
        rows = pa.table({"split": values, "row": columns["row"]})
        reject(self.name, rows, wrong, "split", "be train, val, pool (pre-training only) or begin with test")
        return values


def clip_ids(rows: pa.Table) -> pa.ChunkedArray:
    """Names of the clips: filename or audio_path where each row has one of its own, else address."""
    for column in ("filename", "audio_path"):
        if not rows[column].null_count and not pc.any(repeats(rows[column])).as_py():
            return rows[column]
    return rows["address"]
