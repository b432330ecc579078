"""Folders of a storage, local or at a URL, and artifacts in them: `<storage>/artifacts/<stage>/<key>/`.

A key is a hash of the settings that change the result, the keys of the inputs and the stage's version; worker counts,
paths and tracking are not part of it. An artifact is finished once its `done.json` exists, which is written last
because object stores have no atomic rename. Operations that fail temporarily are retried (`raymae.storage.retry`).
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from raymae.config import redact
from raymae.storage import connections
from raymae.storage.checksums import CHECKSUMS, check_format, checksum_of, crc32, digest
from raymae.storage.plain import check_plain
from raymae.storage.refusal import explained, require_bucket, why_not
from raymae.storage.retry import RetryingFile, StorageError, is_conflict, with_retries

log = logging.getLogger(__name__)

Found = TypeVar("Found")

PART = ".part"
"""Name ending of a local file that is being written."""


class DamagedResultError(ValueError):
    """A `done.json` that isn't what was written."""


@cache
def _warn_once(message: str) -> None:
    log.warning("%s; the stage is made again", message)


@dataclass(frozen=True)
class Folder:
    """A folder on local disk or at any URL of fsspec; picklable, so that workers on other nodes can open it."""

    url: str

    @cached_property
    def _located(self) -> tuple[AbstractFileSystem, str]:
        fs, path = url_to_fs(self.url, **connections.options(self.url))
        # other processes write here: a cached listing may be out of date
        if hasattr(fs.dircache, "use_listings_cache"):  # the hub's is a plain dict
            fs.dircache.use_listings_cache = False
        fs.dircache.clear()
        return fs, path.rstrip("/")

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec file system."""
        return self._located[0]

    @property
    def is_local(self) -> bool:
        """Whether this machine's own file system holds the folder."""
        return self.fs.protocol in ("file", ("file", "local"))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url.rstrip('/')}/{self._within(name)}")

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def __repr__(self) -> str:
        return f"Folder({redact(self.url)!r})"  # Ray shows arguments in its dashboard and logs

    def _within(self, name: str) -> str:
        """The name of something below this folder: names come from files, too, which others may have written."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} leads out of the folder {redact(self.url)}")
        return name

    def path(self, name: str = "") -> str:
        """Path of a file in the folder, as its file system expects it; ValueError for one outside of it."""
        return f"{self._located[1]}/{self._within(name)}" if name else self._located[1]

    def _try(self, call: Callable[[], Found]) -> Found:
        """Return the result of `call`, retried while the storage fails temporarily; StorageError where a user can mend
        what failed."""
        try:
            return with_retries(call, f"storage {redact(self.url)}")
        except Exception as error:  # each file system has its own
            raise explained(self.url, error) from None

    def exists(self, name: str = "") -> bool:
        """Whether the file exists."""
        return bool(self._try(lambda: self.fs.exists(self.path(name))))

    def is_folder(self) -> bool:
        """Whether the folder exists."""
        return bool(self._try(lambda: self.fs.isdir(self.path())))

    def names(self) -> list[str]:
        """Names in the folder, sorted, without half-written files; empty if the folder does not exist."""
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in self._listed(detail=False))
        return sorted(name for name in names if not name.endswith(PART))

    def sizes(self) -> dict[str, int]:
        """Name and size in bytes of everything in the folder, in one listing; empty if the folder does not exist."""
        entries = self._listed(detail=True)
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in entries}

    def _listed(self, detail: bool) -> list[Any]:
        def once() -> list[Any]:
            self.fs.invalidate_cache()
            return list(self.fs.ls(self.path(), detail=detail)) if self.fs.isdir(self.path()) else []

        return self._try(once)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""

        def opened() -> BinaryIO:
            return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

        if self.is_local:
            return self._try(opened)
        return cast(BinaryIO, RetryingFile(opened, self._try))

    def read_bytes(self, name: str) -> bytes:
        """Read the whole file."""
        return bytes(self._try(lambda: self.fs.cat_file(self.path(name))))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read parts of files, (name, start, end) each: of object storage all at once."""
        names, starts, ends = ([part[place] for part in ranges] for place in range(3))
        paths = [self.path(str(name)) for name in names]
        return list(self._try(lambda: self.fs.cat_ranges(paths, starts, ends, on_error="raise")))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write the whole file: it is stored complete or not at all. StorageFullError if there is no room for it."""
        self._try(lambda: self._in_its_folder(name, lambda: self._write(name, content)))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one of this name, of several processes by exactly one; False for others.

        On file systems by O_EXCL, on S3, GCS and Azure by a conditional request (`connections.create`). Where fsspec
        has neither, two processes that ask within the same moment may both be told True.
        """

        def once() -> None:
            if self.is_local:
                with open(self.path(name), "xb") as file:
                    file.write(content)
            else:
                connections.create(self.fs, self.path(name), content)

        try:
            self._try(lambda: self._in_its_folder(name, once))
        except Exception as error:  # each file system has its own
            if not is_conflict(error):
                raise
            return False
        return True

    def _in_its_folder(self, name: str, write: Callable[[], None]) -> None:
        """Write a file, and its folder where that is missing; the bucket of an object store isn't made."""
        try:
            write()
        except FileNotFoundError as error:
            require_bucket(self.url, error)
            self.fs.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
            write()

    def _write(self, name: str, content: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(self.path(name), content)
            return
        part = Path(f"{self.path(name)}.{uuid.uuid4().hex[:8]}{PART}")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path(name))
        finally:
            part.unlink(missing_ok=True)

    def read_json(self, name: str, checked: bool = False) -> Any:
        """Read a JSON file, if asked for by `read_checked`; ValueError names a damaged file."""
        content = self.read_checked(name) if checked else self.read_bytes(name)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep
            raise ValueError(f"{redact(self.url)}/{name} is damaged: {error}") from None

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON."""
        self.write_bytes(name, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None, checked: bool = False) -> pa.Table:
        """Read a Parquet table; ValueError for columns of extension types (`check_plain`) and, if it is to be checked,
        for another content than was written (`read_checked`)."""
        with pa.BufferReader(self.read_checked(name)) if checked else self.open(name) as file:
            table = pq.ParquetFile(file)
            check_plain(table.schema_arrow, f"{redact(self.url)}/{name}")
            return table.read(columns)

    def write_table(self, name: str, table: pa.Table, row_group_size: int | None = None) -> None:
        """Write a table as Parquet."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size)
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content."""

        def once() -> None:
            if self.fs.exists(self.path(name)):
                connections.remove(self.fs, self.path(name))

        self._try(once)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into the folder: it is stored complete or not at all."""
        if self.is_local:
            self.write_bytes(name, source.read_bytes())
        else:
            self._try(lambda: self._in_its_folder(name, lambda: self.fs.put_file(str(source), self.path(name))))

    def download(self, name: str, target: Path) -> None:
        """Copy a file of the folder to local disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self._try(lambda: self.fs.get_file(self.path(name), str(target)))

    def files(self) -> dict[str, dict[str, Any]]:
        """fsspec's `info` of every file in the folder and below it, by the path relative to the folder."""

        def found() -> dict[str, dict[str, Any]]:
            self.fs.invalidate_cache()
            return dict(self.fs.find(self.path(), detail=True))

        start = len(self.path().rstrip("/")) + 1
        return {path[start:]: info for path, info in self._try(found).items()}

    def is_done(self) -> bool:
        """Whether the folder is a finished artifact; one whose `done.json` is damaged isn't, and is made again."""
        try:
            self.result()
        except FileNotFoundError:
            return False
        except DamagedResultError as error:
            _warn_once(str(error))
            return False
        return True

    def result(self) -> dict[str, Any]:
        """The result that `finish` wrote.

        Raises:
            FileNotFoundError: the artifact isn't finished.
            ValueError: another version wrote it, in another format.
            DamagedResultError: it isn't what was written.
        """
        where = f"{redact(self.url)}/done.json"
        try:
            found = self.read_json("done.json")
        except ValueError as error:
            raise DamagedResultError(str(error)) from None
        if not isinstance(found, dict) or not found:
            raise DamagedResultError(f"{where} is damaged: it holds no result")
        check_format(found.pop("format", 1), FORMAT, where)
        if found.pop("digest", None) != digest(found):
            raise DamagedResultError(f"{where} is damaged: it isn't what was written")
        return found

    def read_checked(self, name: str) -> bytes:
        """Read a file of a finished artifact; ValueError if it isn't what was written.

        An artifact without checksums, such as a downloaded model, is read unchecked.
        """
        content = self.read_bytes(name)
        try:
            checksums = self.read_json(CHECKSUMS)
        except FileNotFoundError:
            return content
        if name not in checksums or crc32(content) != checksums[name]:
            raise ValueError(
                f"{redact(self.url)}/{name} is damaged: it doesn't have the checksum of {CHECKSUMS}. Restore it, or "
                "remove done.json beside it and run the job that made it, which makes this stage again"
            )
        return content

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the artifact finished: write `checksums.json`, then `done.json` with `result`.

        The checksums are those of the stored files, which are read back; write no file that later stages read after it.
        """
        names = sorted(self.files())
        checked = [name for name in names if name.split("/")[0] not in (*UNCHECKED, CHECKSUMS)]
        self.write_json(CHECKSUMS, {name: checksum_of(self, name) for name in checked})
        result = json.loads(json.dumps(result, allow_nan=False))  # as it is read: tuples are lists
        self.write_json("done.json", {"format": FORMAT, **result, "digest": digest(result)})


def change_time(info: dict[str, Any]) -> float:
    """When a file was last changed, in seconds since 1970, from fsspec's `info` of it; 0 if that isn't known.

    File systems name the field differently: "mtime" (local, SFTP, GCS), "LastModified" (S3), "last_modified" (Azure),
    "created" (memory). These times are part of the names of shards.
    """
    changed = next((info[key] for key in ("mtime", "LastModified", "last_modified", "created") if key in info), 0)
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)


# Files of a stage's folder ------------------------------------------------------------------------------------------

EVENTS, COMMITS = "events", "commits"
"""Folders that a training stage writes while it runs: metrics and checkpoints."""
LEASE = "lease"
"""Folder of the lease of the process that makes the stage (`raymae.storage.lease`)."""
FORMAT = 3
"""Format number of every `done.json`; raised when the names of its fields change."""
UNCHECKED = (EVENTS, COMMITS, LEASE, "figures", "stacks", "failures", "profile", "done.json")
"""Files and folders without a checksum: no later stage reads them."""


def open_storage(url: str, option: str = "--storage") -> Folder:
    """The folder at `url` (a path is made absolute); ValueError, naming the option, if it can't be written."""
    if "://" not in url:
        url = str(Path(url).expanduser().resolve())
    try:
        storage = Folder(url)
        probe = f".write-test-{uuid.uuid4().hex[:8]}"
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except StorageError as error:
        raise ValueError(f"{option} {error}") from None
    except Exception as error:  # file systems raise exceptions of their own, such as that credentials are missing
        raise ValueError(f"{option} {redact(url)} can't be written: {redact(why_not(url, error))}") from None
    return storage
