"""What a run says of itself to MLflow: by way of its outbox, delivered beside the work, at any time."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raymae.config import TrackingConfig, redact
from raymae.storage.folder import Folder
from raymae.tracking.delivery import START_SECONDS, Delivery
from raymae.tracking.outbox import Entry, Outbox, left_over, server_id
from raymae.tracking.uri import tracking_uri

if TYPE_CHECKING:
    from raymae.tracking.tracker import Tracker

log = logging.getLogger(__name__)

SHUTDOWN_GRACE_SECONDS = 10.0
"""How long a job that ends with an error waits for MLflow."""


class Reporter:
    """What MLflow is told of a run, whose folder keeps it until then, and of its children.

    Args:
        folder: the run's.
    """

    def __init__(self, tracking: TrackingConfig, storage: Folder, folder: Folder) -> None:
        self.tracking, self.storage, self.folder = tracking, storage, folder
        self._started = False

    @cached_property
    def uri(self) -> str:
        """MLflow's; ValueError where none is named and the storage is no place for a default."""
        return tracking_uri(self.tracking, self.storage)

    @cached_property
    def server(self) -> str:
        """What the outbox calls it."""
        return server_id(self.tracking, self.uri)

    @cached_property
    def outbox(self) -> Outbox:
        """What there is to tell."""
        return Outbox(self.folder, self.server)

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(self.outbox, self.storage, self._connect, self._left_over)

    def _connect(self) -> Tracker:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the delivery tries again, and says so
        from raymae.tracking.tracker import Tracker  # which takes seconds

        return Tracker(self.tracking, self.storage)

    def _left_over(self) -> list[Outbox]:
        return left_over(self.storage, self.server, self.folder)

    def has_waiting(self) -> bool:
        """Whether MLflow lacks something that this run or another one of the storage had to say."""
        known = self.tracking.uri or self.storage.is_local
        return bool(known and (self.outbox.lacking() or self.outbox.open_runs() or self._left_over()))

    def start(self, *entries: Entry) -> None:
        """Begin to deliver, these entries and what waits.

        ValueError where MLflow can't be used as the settings say; one that is down is waited for beside the work.
        """
        if entries:
            self.write(*entries)
        self._delivery.start(START_SECONDS if self.uri.startswith("http") else None)
        self._started = True

    def write(self, *entries: Entry) -> None:
        """Say something."""
        self.outbox.write(*entries)
        self._delivery.wake()

    def check(self) -> None:
        """ValueError where MLflow has answered late that it can't be used."""
        self._delivery.check()

    @property
    def patience(self) -> float:
        """Seconds to wait for a server that is down, in the end."""
        return 60 * self.tracking.patience_minutes

    def close(self, status: str) -> str | None:
        """End all runs that are open and deliver what waits; None, or a line that says what still does."""
        if not self._started:
            return None
        left = "KILLED" if status == "FINISHED" else status  # of a child: a driver that died had begun it
        runs = reversed(self.outbox.open_runs())
        entries = [finish(run, left if run else status) for run in runs]
        if entries:
            self.write(*entries)
        waiting = self._delivery.close(self.patience if status == "FINISHED" else SHUTDOWN_GRACE_SECONDS)
        if not waiting:
            return None
        return (
            f"MLflow at {redact(self.uri)} can't be reached ({self._delivery.reason or 'no answer'}): what it lacks "
            f"waits in {redact(self.outbox.folder.url)} and is delivered by the same command, or by the next job with "
            "this storage"
        )

    def abandon(self, status: str) -> None:
        """End all runs after an error, which counts for more than any that comes now."""
        try:
            if line := self.close(status):
                log.warning("%s", line)
        except Exception as error:
            log.warning("MLflow isn't told that the run ended: %s", redact(str(error)))


def begin(
    run: str, key: str, name: str, params: dict[str, str], tags: dict[str, str], events: str | None = None
) -> Entry:
    """The entry that a run begins with."""
    return {"do": "begin", "run": run, "key": key, "name": name, "params": params, "tags": tags, "events": events}


def log_entry(run: str, numbers: dict[str, dict[str, float]], artifact: str = "", files: Sequence[str] = ()) -> Entry:
    """The entry of a run's figures, and of files of a folder of the storage."""
    return {"do": "tell", "run": run, "numbers": numbers, "artifact": artifact, "files": list(files)}


def finish(run: str, status: str = "FINISHED") -> Entry:
    """The entry that a run ends with."""
    return {"do": "finish", "run": run, "status": status}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as "section.field": text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found
