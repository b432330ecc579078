"""A storage that hangs once, as a network file system does: the main thread is in C code that never returns."""

from __future__ import annotations

import ctypes
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from raymae.features.store import SHARDS, FeatureStore
from raymae.storage.folder import Folder
from raymae.training.guards import watchdog
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips
from tests.support.training import TINY

STEP = 6
"""The step whose event hangs, written in the background: the next checkpoint waits for it."""
SECONDS = 3600


@dataclass(frozen=True)
class HangingFolder(Folder):
    """Hangs when the event of `STEP` is written for the first time."""

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, or hang."""
        marker = Path(self.path("hung"))
        if name == f"events/{STEP:09d}.json" and not marker.exists():
            marker.touch()
            time.sleep(SECONDS)
        super().write_bytes(name, content)


@dataclass(frozen=True)
class LockedFolder(Folder):
    """Hangs too, and keeps the interpreter's lock: no other Python thread can run."""

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file, or hang."""
        if name == f"events/{STEP:09d}.json":
            ctypes.PyDLL(None).sleep(SECONDS)
        super().write_bytes(name, content)


def hanging_spec(store: FeatureStore, artifact: Folder, stall_seconds: float) -> StageSpec:
    """A pre-training with a checkpoint after every step, whose storage hangs."""
    train = replace(TINY.pretrain, commit_minutes=1e-9)
    compute = replace(TINY.compute, stall_minutes=stall_seconds / 60, torch_threads=1)
    config = replace(TINY, pretrain=train, compute=compute)
    return StageSpec(name="pretrain", kind="pretrain", config=config, artifact=artifact, store=store)


def main(kind: str, folder: Path) -> None:
    """Train a stage that hangs, in this process; everything is written to `folder`."""
    if not folder.exists():
        folder.mkdir()
        make_store(folder / "store", write_clips(folder, 40))
    root = Folder(str(folder / "store"))
    store = FeatureStore(root / "artifacts/prepare/test", root / SHARDS)
    if kind == "locked":
        watchdog.LAST_RESORT_SECONDS = 1.0
    spec = hanging_spec(store, {"hanging": HangingFolder, "locked": LockedFolder}[kind](str(folder / "run")), 6)
    run_stage(spec, BareSession(store, spec.artifact))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
