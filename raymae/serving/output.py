"""The output table of a job, one file or a folder of files, at a path or URL: whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from raymae.config import redact
from raymae.storage.folder import Folder, open_storage
from raymae.storage.refusal import explained
from raymae.storage.retry import StorageError

FILES = (".csv", ".parquet")
FORMULA = r"^([=+\-@\t\r])"
"""Beginning of a cell that a spreadsheet takes for a formula."""


@dataclass(frozen=True)
class Output:
    """Where a table is written to."""

    folder: Folder
    """The folder of the file or files."""
    file: str | None
    """Name of the one file; None: a folder of files."""

    def __str__(self) -> str:
        return redact((self.folder / self.file if self.file else self.folder).url)

    def write(self, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
        """Write the one file, table by table: it is there whole or not at all."""
        assert self.file
        place = Path(self.folder.path()) if self.folder.is_local else Path(tempfile.gettempdir())
        part = place / f".{self.file}.{uuid.uuid4().hex[:8]}.part"
        try:
            with open(part, "wb") as sink:
                with _writer(self.file, sink, schema) as writer:
                    for table in tables:
                        table = table.replace_schema_metadata(None)
                        writer.write_table(as_text(table) if self.file.endswith(".csv") else table)
                sink.flush()
                os.fsync(sink.fileno())
            if self.folder.is_local:
                part.replace(self.folder.path(self.file))
            else:  # an object appears once its upload is complete
                self.folder.upload(part, self.file)
        except OSError as error:
            raise explained(str(place), error) from None
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _writer(name: str, sink: object, schema: pa.Schema) -> Iterator[pa_csv.CSVWriter | pq.ParquetWriter]:
    schema = schema.remove_metadata()
    if name.endswith(".csv"):
        with pa_csv.CSVWriter(sink, as_text(schema.empty_table()).schema) as writer:
            yield writer
    else:
        with pq.ParquetWriter(sink, schema) as writer:
            yield writer


def without_credentials(table: pa.Table) -> pa.Table:
    """The table without the credentials of URLs in its column path."""
    paths = [redact(path) for path in table["path"].to_pylist()]
    return table.set_column(table.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))


def as_text(table: pa.Table) -> pa.Table:
    """The table for a CSV file: an apostrophe before cells and column names that spreadsheets take for formulas."""
    return pa.table(
        [
            pc.replace_substring_regex(column, FORMULA, r"'\1") if pa.types.is_string(column.type) else column
            for column in table.columns
        ],
        [re.sub(FORMULA, r"'\1", name) for name in table.column_names],
    )


def open_output(option: str, url: str | None) -> Output:
    """The output that an option names: a .csv or .parquet file, or a folder; ValueError where it can't be written."""
    if not url:
        raise ValueError(f"{option} is missing: name a .csv or .parquet file to write, or a folder")
    path = url if "://" in url else str(Path(url).expanduser().resolve())
    parent, _, name = path.rstrip("/").rpartition("/")
    try:
        is_folder = url.endswith("/") or Folder(path).is_folder()
    except StorageError as error:
        raise ValueError(f"{option} {error}") from None
    except (ImportError, ValueError) as error:  # the protocol is unknown, or its package is not installed
        raise ValueError(f"{option} {redact(url)} can't be written: {redact(str(error))}") from None
    if name.endswith(FILES) and not is_folder:
        if "://" not in path and not Path(parent or "/").is_dir():
            raise ValueError(f"{option} {url} can't be written: there is no folder {Path(url).parent}")
        return Output(open_storage(parent or "/", option), name)
    if "." in name and not is_folder:
        raise ValueError(f"{option} {redact(url)} must name a .csv or .parquet file, or a folder: end that with /")
    if name.endswith(FILES):
        raise ValueError(f"{option} {redact(url)} is a folder; name a file, or a folder without that ending")
    return Output(open_storage(path.rstrip("/"), option), None)
