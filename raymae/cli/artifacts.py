"""The command line of `jobs/artifacts.py`: one subcommand per question to a storage."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from raymae.cli.main import check_target
from raymae.config import redact
from raymae.pipeline.inventory import as_json, damage, human, is_silent, nobodys, remove, row, table, take
from raymae.storage.folder import Folder, open_storage
from raymae.training.state.lineage import models_that_saw, sights_text


@dataclass(frozen=True, kw_only=True)
class Ls:
    """What is stored: stages and shards with their size, age and state, and the runs and sweeps that name them."""

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """List it."""
        items = take(storage)
        print(table(items))
        return as_json(storage, items), True


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read every finished stage and every shard and compare it with the checksums that were written with it; ends with
    status 1 where something is damaged or missing."""

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Check it."""
        items = [item for item in take(storage) if item.path.startswith("artifacts/")]
        found = {item.path: said for item in items if (said := damage(storage, item)) is not None}
        for path, said in found.items():
            print(f"{path}: {said}")
        size = human(sum(item.size for item in items))
        print(f"{len(items) - len(found)} of {len(items)} stages and shards are sound ({size})")
        silent = sum(is_silent(storage, item) for item in items)
        if silent:
            print(
                f"of {silent} of them it is only known that they are there: they have no checksums, or aren't finished"
            )
        return found, not found


@dataclass(frozen=True, kw_only=True)
class Gc:
    """What no run and no sweep names any more, and is older than a week; removed with `--delete` alone.

    Runs, sweeps, data sets and MLflow's files are never nobody's; what belongs to a run goes once the run is forgotten.
    A registered model is a copy of its own and needs no stage.
    """

    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    keep_days: float = 7.0
    """Nothing that was written to since is removed: a run may be making it."""
    forget: tuple[str, ...] = ()
    """Runs and sweeps that no longer count, and go themselves: runs/small-pipeline-1a2b…"""
    delete: bool = False
    """Remove it."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Say what can go, and let it."""
        items = nobodys(take(storage), self.keep_days, self.forget)
        for item in items:
            print(row(item.kind, item.name, item.state, item.size, item.days, []))
        size = human(sum(item.size for item in items))
        if self.delete:
            remove(storage, items)
            print(f"removed {len(items)} things, {size}")
        else:
            print(f"{len(items)} things, {size}, could go; nothing is removed without --delete")
        return as_json(storage, items), True


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Which models have learnt from some clips, as what, and through which weights that they began with."""

    values: tuple[str, ...] = ()
    """What the column holds of the clips that are asked for."""
    column: str = "clip_id"
    """Column of the clip table that names the clips: clip_id, path, group, …"""
    storage: str = "raymae-storage"
    """Folder or URL of the storage."""
    json: str | None = None
    """Write the answer to this JSON file."""

    def answer(self, storage: Folder) -> tuple[Any, bool]:
        """Find them."""
        if not self.values:
            raise ValueError("--values names the clips: --values walk-17, with --column group for all of a group")
        sights, unknown = models_that_saw(storage, self.column, self.values)
        print(sights_text(sights, unknown, storage))
        return {"seen": [asdict(one) for one in sights], "unknown": unknown}, True


QUESTIONS: dict[str, Any] = {"ls": Ls, "verify": Verify, "gc": Gc, "seen": Seen}


def main(doc: str, arguments: Sequence[str] | None = None) -> None:
    """Answer what the command line asks; 0 means that all is well."""
    question: Ls | Verify | Gc | Seen = tyro.extras.subcommand_cli_from_dict(
        QUESTIONS, prog=Path(sys.argv[0]).name, description=doc, args=arguments
    )
    try:
        check_target("--json", question.json)
        found, well = question.answer(existing(question.storage))
        if question.json:
            Path(question.json).write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {redact(str(error))}")
    if not well:
        sys.exit(1)


def existing(url: str) -> Folder:
    """The storage at a path or URL; ValueError where there is none, which a question must not make."""
    path = url if "://" in url else str(Path(url).expanduser().resolve())
    if not Folder(path).exists("artifacts"):
        raise ValueError(f"--storage {url} holds no artifacts: no job has written there")
    return open_storage(url)
