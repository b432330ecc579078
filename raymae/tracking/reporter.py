"""Report a run to MLflow without waiting for it: entries go to an outbox, and a thread delivers them.

From a metric to MLflow, in order:

1. `begin`, `log_entry` and `finish` (below) make an entry: a plain dict, described in `raymae.tracking.outbox`.
2. `Reporter.write` puts it into the run's `Outbox`, a JSON file in the run's folder, and returns: from now on it
   survives the process. `PlanReporter` (pipeline) and the sweep's recorder know which entries to write.
   The metrics of a training's steps take no entry: the workers write them to the artifact (`raymae.storage.events`).
3. `Delivery`, a thread of the driver, reads the outbox and the trainings' events, retries while the server is down, and
   marks files as delivered. It knows no MLflow, only its interface `Receiver`.
4. `Tracker` implements `Receiver` with MLflow's client; each call may be repeated without logging anything twice.
   Its base class `Registry` is the model registry, which `Reporter`'s subclasses reach through `Delivery.call`.
"""

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
    """Reports a run and its children to MLflow.

    Args:
        folder: the run's folder, which holds the outbox.
    """

    def __init__(self, tracking: TrackingConfig, storage: Folder, folder: Folder) -> None:
        self.tracking, self.storage, self.folder = tracking, storage, folder
        self._started = False

    @cached_property
    def uri(self) -> str:
        """MLflow's URI; ValueError if none is configured and the storage isn't local, so that there is no default."""
        return tracking_uri(self.tracking, self.storage)

    @cached_property
    def server(self) -> str:
        """The server's id in the outbox."""
        return server_id(self.tracking, self.uri)

    @cached_property
    def outbox(self) -> Outbox:
        """The run's outbox."""
        return Outbox(self.folder, self.server)

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(self.outbox, self.storage, self._connect, self._left_over)

    def _connect(self) -> Tracker:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the delivery retries, and logs it
        from raymae.tracking.tracker import Tracker  # importing MLflow takes seconds

        return Tracker(self.tracking, self.storage)

    def _left_over(self) -> list[Outbox]:
        return left_over(self.storage, self.server, self.folder)

    def has_waiting(self) -> bool:
        """Whether this run or another one of the storage has something to deliver."""
        has_server = self.tracking.uri or self.storage.is_local
        return bool(has_server and (self.outbox.pending() or self.outbox.open_runs() or self._left_over()))

    def start(self, *entries: Entry) -> None:
        """Start to deliver: these entries and what is pending.

        ValueError if MLflow can't be used with these settings; while it is down the thread retries beside the work.
        """
        if entries:
            self.write(*entries)
        self._delivery.start(START_SECONDS if self.uri.startswith("http") else None)
        self._started = True

    def write(self, *entries: Entry) -> None:
        """Write entries to the outbox."""
        self.outbox.write(*entries)
        self._delivery.wake()

    def check(self) -> None:
        """Raise ValueError if MLflow has answered late that it can't be used."""
        self._delivery.check()

    @property
    def patience(self) -> float:
        """Seconds to wait for a server that is down, at the end of a job."""
        return 60 * self.tracking.patience_minutes

    def close(self, status: str) -> str | None:
        """End all open runs and deliver what is pending; None, or a line if something still is."""
        if not self._started:
            return None
        child_status = "KILLED" if status == "FINISHED" else status  # a driver that died had begun it
        runs = reversed(self.outbox.open_runs())
        entries = [finish(run, child_status if run else status) for run in runs]
        if entries:
            self.write(*entries)
        waiting = self._delivery.close(self.patience if status == "FINISHED" else SHUTDOWN_GRACE_SECONDS)
        if not waiting:
            return None
        return (
            f"MLflow at {redact(self.uri)} can't be reached ({self._delivery.reason or 'no answer'}): what isn't "
            f"delivered waits in {redact(self.outbox.folder.url)}; the same command, or the next job with this "
            "storage, delivers it"
        )

    def abandon(self, status: str) -> None:
        """End all runs after an error; further errors are only logged, so as not to hide it."""
        try:
            if line := self.close(status):
                log.warning("%s", line)
        except Exception as error:
            log.warning("the end of the run was not reported to MLflow: %s", redact(str(error)))


def begin(
    run: str,
    key: str,
    name: str,
    params: dict[str, str],
    tags: dict[str, str],
    events: str | None = None,
    data: dict[str, Any] | None = None,
) -> Entry:
    """The entry that begins a run; `events` is a training's artifact within the storage, `data` its data set
    (`Tracker.log_data`)."""
    told = {"do": "begin", "run": run, "key": key, "name": name, "params": params, "tags": tags, "events": events}
    return told | ({"data": data} if data else {})


def log_entry(run: str, numbers: dict[str, dict[str, float]], artifact: str = "", files: Sequence[str] = ()) -> Entry:
    """The entry of a run's final metrics, by prefix, and of files of `artifact`, a folder of the storage."""
    return {"do": "tell", "run": run, "numbers": numbers, "artifact": artifact, "files": list(files)}


def finish(run: str, status: str = "FINISHED") -> Entry:
    """The entry that ends a run."""
    return {"do": "finish", "run": run, "status": status}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to "section.field": text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found
