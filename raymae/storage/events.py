"""Events of a training stage, a JSON file per reported step.

Events beyond the last checkpoint are removed when the stage resumes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from raymae.config import redact
from raymae.storage.commits import latest_step
from raymae.storage.folder import EVENTS, Folder

log = logging.getLogger(__name__)

READERS = 16
"""Events that are read at the same time: an object store takes as long for one as for this many."""


def write_event(artifact: Folder, event: dict[str, Any]) -> None:
    """Write a step's metrics to the stage's folder: one file per event, so that a repeated step replaces its own."""
    artifact.write_bytes(f"{EVENTS}/{event['step']:09d}.json", json.dumps(event).encode())


class EventWriter:
    """Writes events in a thread of its own, in their order: no training step waits for the storage.

    An event that can't be written for `RETRY_SECONDS` is lost, with a warning; no error ends the training.
    """

    def __init__(self, artifact: Folder) -> None:
        self.artifact = artifact
        self._thread = ThreadPoolExecutor(1, "events")
        self._newest: Future[None] | None = None

    def write(self, event: dict[str, Any]) -> None:
        """Write an event in the background."""
        self._newest = self._thread.submit(self._write, event)

    def so_far(self) -> Callable[[], None]:
        """A function that waits until what is in the queue now is written, or lost."""
        newest = self._newest
        return lambda: newest.result() if newest else None

    def _write(self, event: dict[str, Any]) -> None:
        try:
            write_event(self.artifact, event)
        except Exception as error:  # each file system has its own
            log.warning("the event of step %d can't be written: %s", event["step"], redact(str(error)))


def read_events(artifact: Folder, after: int = -1) -> list[dict[str, Any]]:
    """Events of the steps after `after`, in order; many at once are read side by side.

    A damaged one is left out, with a warning: no training or evaluation uses them.
    """
    folder = artifact / EVENTS

    def read(name: str) -> Any:
        try:
            event = folder.read_json(name)
        except FileNotFoundError:  # a restart has just removed it
            return None
        except ValueError:
            event = None
        if not isinstance(event, dict) or not {"step", "time", "metrics"} <= event.keys():
            log.warning("%s is damaged; its metrics are left out", redact(folder.path(name)))
            return None
        return event

    names = [name for step, name in event_names(artifact) if step > after]
    if len(names) < READERS:
        found = list(map(read, names))
    else:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read, names))
    return [event for event in found if event is not None]


def committed_events(artifact: Folder, after: int = -1) -> list[dict[str, Any]]:
    """Events that no restart removes: up to the newest checkpoint; all of a finished stage."""
    done, step = artifact.is_done(), latest_step(artifact) or 0
    if not done and step <= after:
        return []
    return [event for event in read_events(artifact, after) if done or event["step"] <= step]


def take_back_events(artifact: Folder, after: int) -> None:
    """Remove the events of the steps after `after`: training restarts there and may report at other steps."""
    for step, name in event_names(artifact):
        if step > after:
            (artifact / EVENTS).remove(name)


def event_names(artifact: Folder) -> list[tuple[int, str]]:
    """Step and file name of every event, in order."""
    return [(int(name[:9]), name) for name in (artifact / EVENTS).names() if name[:9].isdigit()]
