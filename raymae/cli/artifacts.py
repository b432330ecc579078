"""The command line of the job artifacts: subcommands that list, verify and clean a storage and trace clips."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from raymae.cli.job import Command, called
from raymae.cli.main import check_target
from raymae.cli.subcommands import choose, first_line
from raymae.config import redact
from raymae.pipeline.inventory import as_json, damage, human, is_unverifiable, remove, row, table, take, unreferenced
from raymae.storage.folder import Folder, open_storage
from raymae.storage.found import beside
from raymae.training.state.lineage import models_trained_on, uses_text


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List what is stored: stages and shards with size, age and state, and the runs and sweeps that use them."""

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Print the list."""
        items = take(storage)
        print(table(items))
        return as_json(storage, items), True


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every finished stage and every shard and compare them with their checksums; exit status 1 if something is
    damaged or missing."""

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Print what is damaged, and the number of sound stages and shards."""
        items = [item for item in take(storage) if item.path.startswith("artifacts/")]
        found = {item.path: problem for item in items if (problem := damage(storage, item)) is not None}
        for path, problem in found.items():
            print(f"{path}: {problem}")
        size = human(sum(item.size for item in items))
        print(f"{len(items) - len(found)} of {len(items)} stages and shards are sound ({size})")
        unverifiable = sum(is_unverifiable(storage, item) for item in items)
        if unverifiable:
            print(f"{unverifiable} of them can't be verified: they have no checksums, or are unfinished")
        return found, not found


@dataclass(frozen=True, kw_only=True)
class Gc:
    """List what no run or sweep uses any more and is older than a week; remove it with `--delete`.

    Runs, sweeps, data sets and MLflow's files are kept; a run or sweep named by `--forget` is removed with the stages
    that it alone uses. A registered model is a copy of its own and needs no stage.
    """

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    keep_days: float = 7.0
    """Days for which something is kept after it was last written to: a run may be making it."""
    forget: tuple[str, ...] = ()
    """Runs and sweeps to remove: runs/small-pipeline-1a2b…"""
    delete: bool = False
    """Remove what is listed."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Print what can be removed, and remove it with `--delete`."""
        items = unreferenced(take(storage), self.keep_days, self.forget)
        for item in items:
            print(row(item.kind, item.name, item.state, item.size, item.days, []))
        size = human(sum(item.size for item in items))
        if self.delete:
            remove(storage, items)
            print(f"removed {len(items)} items, {size}")
        else:
            print(f"{len(items)} items, {size}, can be removed; nothing is removed without --delete")
        return as_json(storage, items), True


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """List the models that were trained on some clips, in which role, and through which initial weights."""

    values: tuple[str, ...] = ()
    """Values of the column by which the clips are selected."""
    column: str = "clip_id"
    """Column of the clip table that selects the clips: clip_id, path, group, …"""
    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Print them, and the models of which it isn't known."""
        if not self.values:
            raise ValueError("--values selects the clips: --values walk-17, with --column group for all of a group")
        uses, unknown = models_trained_on(storage, self.column, self.values)
        print(uses_text(uses, unknown, storage))
        return {"trained_on": [asdict(one) for one in uses], "unknown": unknown}, True


SUBCOMMANDS: dict[str, Any] = {"ls": Ls, "verify": Verify, "gc": Gc, "trained-on": TrainedOn}
RENAMED = {"seen": "trained-on"}
"""Old names of subcommands and their new ones."""


def main(command: Command, arguments: Sequence[str]) -> None:
    """Run the subcommand of a command line; exit status 1 means an error or a damaged storage."""
    chosen = choose(command, arguments, {name: first_line(kind.__doc__) for name, kind in SUBCOMMANDS.items()}, RENAMED)
    part: Ls | Verify | Gc | TrainedOn = tyro.cli(
        SUBCOMMANDS[chosen], prog=f"{called(command.name)} {chosen}", args=arguments[1:]
    )
    print(f"{command.name} {chosen}: storage {redact(part.storage)}", file=sys.stderr, flush=True)
    try:
        check_target("--json", part.json)
        answer, sound = part.answer(existing(part.storage))
        if part.json:
            Path(part.json).write_text(json.dumps(answer, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {redact(str(error))}")
    if not sound:
        sys.exit(1)


def existing(url: str) -> Folder:
    """The storage at a path or URL; ValueError where there is none, since opening it would create it."""
    path = url if "://" in url else str(Path(url).expanduser().resolve())
    if not Folder(path).exists("artifacts"):
        raise ValueError(f"--storage {url} holds no artifacts: no job has written there{beside(path, 'artifacts')}")
    return open_storage(url)
