"""Events of a training stage, a JSON file per reported step, and which checkpoints are complete.

Events beyond the last checkpoint are removed when the stage resumes.
"""

from __future__ import annotations

import json
from typing import Any

from raymae.config import redact
from raymae.storage.folder import COMMITS, EVENTS, Folder, check_format

COMMIT_FORMAT = 2
"""Format number of `commit.json`; raised when the names of its fields or settings change."""


def write_event(artifact: Folder, event: dict[str, Any]) -> None:
    """Write a step's metrics to the stage's folder: one file per event, so that a repeated step replaces its own."""
    artifact.write_bytes(f"{EVENTS}/{event['step']:09d}.json", json.dumps(event).encode())


def read_events(artifact: Folder, after: int = -1) -> list[dict[str, Any]]:
    """Events of the steps after `after`, in order."""
    folder, found = artifact / EVENTS, []
    for step, name in event_names(artifact):
        if step > after:
            try:
                found.append(folder.read_json(name))
            except FileNotFoundError:  # a restart has just removed it
                continue
    return found


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


def latest_step(artifact: Folder) -> int | None:
    """Step of the newest complete checkpoint, or None."""
    folder = artifact / COMMITS
    for name in reversed(folder.names()):
        if (folder / name).exists("commit.json"):
            return int(name)
    return None


def read_commit(artifact: Folder, step: int) -> dict[str, Any]:
    """What a checkpoint's `commit.json` holds, all but the tensors; ValueError for the format of another version."""
    folder = artifact / COMMITS / f"{step:09d}"
    state = dict(folder.read_json("commit.json"))
    check_format(state.pop("format", 1), COMMIT_FORMAT, f"{redact(folder.url)}/commit.json")
    return state
