"""The log entries of a run for MLflow, kept in its folder until they are delivered, with their times. Without mlflow.

    <run folder>/outbox/<time>-<id>.json              some entries; never changed, because object stores can't append
    <run folder>/outbox/delivered/<server>.json       the names of the files that a server has

An entry names a run ("" for the job's, the parent of those of its stages or trials) and an operation, `do`:

    begin     start or resume the run with this key: key, name, params, tags, `data`: its data set; for a training,
              `events`: its artifact
    log       log the metrics of some steps of a trial, which no artifact holds as a whole: events
    tell      log metrics of step 0 (`numbers`, by prefix) and `files` of `artifact`, a folder of the storage
    finish    end the run, with a status

The metrics of a training are in its artifact already, a file per event, and are not written twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from raymae.config import TrackingConfig, redact, to_dict
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder

OUTBOX, DELIVERED, CLAIMS = "outbox", "delivered", "claims"

Entry = dict[str, Any]


def server_id(config: TrackingConfig, uri: str) -> str:
    """An id of a server's experiment; it doesn't depend on the password."""
    return digest([redact(uri), config.experiment])


class Outbox:
    """The outbox of one run, for one server."""

    def __init__(self, run_folder: Folder, server: str) -> None:
        self.folder, self.server = run_folder / OUTBOX, server
        self._known: dict[str, list[Entry]] = {}
        self._delivered: set[str] | None = None
        self.refused: set[str] = set()
        """Files that the server has refused in part; the next job offers them again."""

    @property
    def claims(self) -> Folder:
        """The folder of claims: whoever delivers takes one first."""
        return self.folder / CLAIMS

    def write(self, *entries: Entry) -> None:
        """Write some entries, with the time; credentials in URLs are redacted."""
        now = time.time()
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        self.folder.write_json(name, [{"time": now, **to_dict(entry)} for entry in entries])

    def names(self) -> list[str]:
        """The names of the files of entries, in order."""
        return [name for name in self.folder.names() if name.endswith(".json")]

    def read(self, name: str) -> list[Entry]:
        """A file's entries."""
        if name not in self._known:
            self._known[name] = self.folder.read_json(name)
        return self._known[name]

    def entries(self) -> Iterator[tuple[str, list[Entry]]]:
        """Every file's name and entries, in order."""
        return ((name, self.read(name)) for name in self.names())

    def pending(self) -> list[str]:
        """The files that the server doesn't have yet, without those that it has refused in this process."""
        return [name for name in self.names() if name not in self.delivered() | self.refused]

    @property
    def is_known(self) -> bool:
        """Whether anything of this run was delivered to the server, or was to be."""
        return self.folder.exists(f"{DELIVERED}/{self.server}.json")

    def delivered(self) -> set[str]:
        """The names of the files that the server has."""
        if self._delivered is None:
            self._delivered = set(self.folder.read_json(f"{DELIVERED}/{self.server}.json")) if self.is_known else set()
        return self._delivered

    def mark(self, *names: str) -> None:
        """Mark files as delivered; without names, mark the run as one to deliver to this server."""
        self._delivered = self.delivered() | set(names)
        self.folder.write_json(f"{DELIVERED}/{self.server}.json", sorted(self._delivered))

    def begun(self) -> dict[str, Entry]:
        """The last begin entry of each run."""
        return {entry["run"]: entry for _, entries in self.entries() for entry in entries if entry["do"] == "begin"}

    def open_runs(self) -> list[str]:
        """The runs that have begun and not finished, in the order in which they began."""
        found: dict[str, None] = {}
        for _, entries in self.entries():
            for entry in entries:
                if entry["do"] == "begin":
                    found[entry["run"]] = None
                elif entry["do"] == "finish":
                    found.pop(entry["run"], None)
        return list(found)


def left_over(storage: Folder, server: str, own: Folder) -> list[Outbox]:
    """The outboxes of other runs and sweeps that have pending entries for this server."""
    folders = [storage / kind / name for kind in ("runs", "sweeps") for name in (storage / kind).names()]
    boxes = [Outbox(folder, server) for folder in folders if folder.url != own.url]
    return [box for box in boxes if box.is_known and box.pending()]
