"""List a storage: its items, the runs that use them, damage, and what can be removed. Neither Ray nor torch.

A run names its stages in `runs/<run>/stages.json` when it starts, a sweep's trial in its record when it ends. Items
that neither names are unreferenced.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymae.config import redact
from raymae.features.shard import DAMAGED, read_summary
from raymae.features.store import SHARDS
from raymae.storage.checksums import CHECKSUMS, checksum_of
from raymae.storage.commits import step_of
from raymae.storage.folder import COMMITS, Folder, change_time

STAGES_FILE = "stages.json"
"""In a run's folder: the keys of its stages and of the weights that it was given."""
KEPT = ("runs", "sweeps", "datasets", "mlflow-artifacts", "mlflow.db")
"""Folders and files at the top of a storage that are never removed as unreferenced."""
DAY = 86_400.0


@dataclass
class Item:
    """One item of a storage."""

    kind: str
    """A stage, `shards`, `weights`, or the folder at the top of the storage (runs, sweeps, ray, …)."""
    name: str
    """The key of a stage, the name of a shard or of a folder."""
    path: str
    """Within the storage."""
    size: int = 0
    """Bytes."""
    modified: float = 0.0
    """When its newest file was written, seconds since 1970; 0 where the storage doesn't give it."""
    state: str = ""
    """Of a stage: finished, or its progress."""
    used_by: list[str] = field(default_factory=list)
    """The runs and sweeps that name it; of a shard, the feature stores."""

    @property
    def days(self) -> float:
        """Its age."""
        return max(0.0, time.time() - self.modified) / DAY


def take(storage: Folder) -> list[Item]:
    """Everything in a storage, by kind and age: one listing, and the records of runs and sweeps."""
    found: dict[str, Item] = {}
    steps: dict[str, int] = {}
    done: set[str] = set()
    for name, size, modified in files_of(storage):
        parts = name.split("/")
        depth = {"artifacts": 3, "runs": 2, "sweeps": 2, "ray": 2}.get(parts[0], 1)
        path = "/".join(parts[:depth])
        if path not in found:
            kind = parts[1] if parts[0] == "artifacts" and len(parts) > 1 else parts[0]
            found[path] = Item(kind, parts[min(depth, len(parts)) - 1], path)
        item = found[path]
        item.size, item.modified = item.size + size, max(item.modified, modified)
        if parts[3:] == ["done.json"]:
            done.add(path)
        if parts[3:4] == [COMMITS] and parts[-1] == "commit.json":
            steps[path] = max(steps.get(path, 0), step_of(parts[4]))
    users = references(storage)
    shards = used_shards(storage, [item for item in found.values() if item.kind == "prepare"])
    for path, item in found.items():
        if path.startswith("artifacts/"):
            item.used_by = sorted(shards[item.name] if item.kind == "shards" else users[item.name])
            if item.kind != "shards":
                item.state = "finished" if path in done else progress(steps.get(path))
    return sorted(found.values(), key=lambda item: (item.kind, -item.modified, item.name))


def progress(step: int | None) -> str:
    """The progress of an unfinished stage."""
    return "started" if step is None else f"at step {step}"


def files_of(storage: Folder) -> Iterator[tuple[str, int, float]]:
    """Path within the storage, size and time of every file."""
    for path, info in storage.files().items():
        yield path, int(info["size"] or 0), change_time(info)


def references(storage: Folder) -> dict[str, set[str]]:
    """By key, the runs and sweeps that name it; ValueError names a damaged record."""
    found: dict[str, set[str]] = defaultdict(set)
    for name in (storage / "runs").names():
        folder = storage / f"runs/{name}"
        for file in (STAGES_FILE, "result.json"):
            if folder.exists(file):
                for key in keys_in(folder.read_json(file)):
                    found[key].add(f"runs/{name}")
    for name in (storage / "sweeps").names():
        trials = storage / f"sweeps/{name}/trials"
        for file in trials.names():
            for key in keys_in(trials.read_json(file)):
                found[key].add(f"sweeps/{name}")
    return found


def keys_in(record: Any) -> Iterator[str]:
    """Every key of a stage or of given weights that the record of a run or of a trial names."""
    for part in ("stages", "given"):
        named = record.get(part) if isinstance(record, dict) else None
        for stage in named.values() if isinstance(named, dict) else ():
            if isinstance(stage, dict) and "key" in stage:
                yield str(stage["key"])


def used_shards(storage: Folder, stores: Sequence[Item]) -> dict[str, set[str]]:
    """By shard, the feature stores that hold it; ValueError names a damaged manifest."""
    found: dict[str, set[str]] = defaultdict(set)
    for item in stores:
        folder = storage / item.path
        if folder.exists("manifest.json"):
            for shard in folder.read_json("manifest.json")["shards"]:
                found[shard["name"]].add(f"prepare/{item.name}")
    return found


# Damage ---------------------------------------------------------------------------------------------------------------


def damage(storage: Folder, item: Item) -> str | None:
    """The damage of a finished stage or a shard, from all of its bytes; None where it is sound or has no checksums."""
    folder = storage / item.path
    if item.kind == "shards":
        whole = item.name.endswith(DAMAGED) or read_summary(storage / SHARDS, item.name, verify=True)
        return (
            None if whole else "the shard is truncated or damaged; jobs/prepare.py with --data.verify computes it again"
        )
    if item.state != "finished":
        return None
    try:
        folder.result()
        known = folder.read_json(CHECKSUMS) if folder.exists(CHECKSUMS) else {}
    except ValueError as error:
        return str(error)
    for name, checksum in known.items():
        if not folder.exists(name):
            return f"{name} is missing"
        if checksum_of(folder, name) != checksum:
            return f"{name} is damaged: its checksum is another one than when it was written"
    return None


def is_unverifiable(storage: Folder, item: Item) -> bool:
    """Whether a stage has no checksums to verify."""
    return item.kind != "shards" and not (item.state == "finished" and storage.exists(f"{item.path}/{CHECKSUMS}"))


# Removal --------------------------------------------------------------------------------------------------------------


def unreferenced(items: Sequence[Item], keep_days: float, forget: Sequence[str] = ()) -> list[Item]:
    """The items that can be removed: named by no run and no sweep, and not written to for `keep_days`.

    Args:
        forget: runs and sweeps ("runs/<name>") to remove too, with the items that they alone use.

    Raises ValueError for one of them that doesn't exist.
    """
    paths = {item.path for item in items}
    for path in forget:
        if path not in paths or path.split("/")[0] not in ("runs", "sweeps"):
            known = sorted(one for one in paths if one.startswith(("runs/", "sweeps/")))
            raise ValueError(f"there is no {path} to forget; there are: {', '.join(known) or 'none'}")
    removed: list[Item] = []
    stores: set[str] = set()
    for item in items:
        left = [user for user in item.used_by if user not in forget]
        if item.path in forget:
            removed.append(item)
        elif item.kind not in (*KEPT, "shards") and not left and item.days >= keep_days:
            removed.append(item)
            stores |= {f"prepare/{item.name}"} if item.kind == "prepare" else set()
    for item in items:
        if item.kind == "shards" and item.days >= keep_days and not set(item.used_by) - stores:
            removed.append(item)
    return removed


def remove(storage: Folder, items: Sequence[Item]) -> None:
    """Remove some items; a stage's done.json first, so that a half removed one doesn't count as finished."""
    for item in items:
        if storage.exists(f"{item.path}/done.json"):
            storage.remove(f"{item.path}/done.json")
        storage.remove(item.path)


# Tables ---------------------------------------------------------------------------------------------------------------


def table(items: Sequence[Item]) -> str:
    """A line per item, shards as one, and the total."""
    shards = [item for item in items if item.kind == "shards"]
    lines = [row(item.kind, item.name, item.state, item.size, item.days, item.used_by) for item in listed(items)]
    if shards:
        unused = sum(not item.used_by for item in shards)
        state = f"{unused} in no store" if unused else ""
        age = min(item.days for item in shards)
        lines.append(row("shards", f"{len(shards)} files", state, sum(item.size for item in shards), age, []))
    total = sum(item.size for item in items)
    head = f"{'kind':14s} {'name':44s} {'state':14s} {'size':>10s} {'age':>8s}  used by"
    return "\n".join([head, *lines, f"{human(total)} in all"])


def listed(items: Sequence[Item]) -> list[Item]:
    """The items with a line of their own: all but shards."""
    return [item for item in items if item.kind != "shards"]


def row(kind: str, name: str, state: str, size: int, days: float, users: Sequence[str]) -> str:
    """One line of the table."""
    names = ", ".join(users[:2]) + (f" and {len(users) - 2} more" if len(users) > 2 else "")
    age = f"{days:.0f} d" if days >= 1 else f"{24 * days:.1f} h"
    return f"{kind:14s} {name:44s} {state:14s} {human(size):>10s} {age:>8s}  {names}".rstrip()


def human(size: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def as_json(storage: Folder, items: Sequence[Item]) -> list[Mapping[str, Any]]:
    """The items for JSON."""
    found = [{**vars(item), "url": redact((storage / item.path).url)} for item in items]
    return list(json.loads(json.dumps(found)))
