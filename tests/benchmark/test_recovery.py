"""`benchmark recovery` and `nodes`: what is timed, and that a committed step that is made again is an error."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raymae.benchmark.scale import recovery
from raymae.benchmark.scale.nodes import Nodes
from raymae.benchmark.scale.recovery import Recovery, disturbed
from raymae.storage.events import write_event
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the only training worker."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        monkeypatch.setattr(recovery, "training_workers", lambda: [process.pid])
        yield process
        process.kill()


def report(artifact: Folder, step: int) -> None:
    write_event(artifact, {"step": step, "time": time.time(), "metrics": {}})


@pytest.mark.parametrize(("committed", "begins"), [(2, 3), (3, 3)])
def test_the_time_from_the_signal_to_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: subprocess.Popen[bytes], committed: int, begins: int
) -> None:
    root = Folder(str(tmp_path))
    spec = replace(Recovery(step=4, after=2).spec(root), artifact=root / "run")

    def train(spec: StageSpec, root: Folder) -> None:
        for step in (1, 2, 3, 4):
            time.sleep(0.01)
            report(spec.artifact, step)
        assert victim.wait(30) < 0
        for step in range(begins, 7):
            time.sleep(0.3)
            report(spec.artifact, step)

    monkeypatch.setattr(recovery, "train_on_ray", train)
    monkeypatch.setattr(recovery, "latest_step", lambda artifact: committed)
    if begins <= committed:
        with pytest.raises(ValueError, match="step 3 was made again, and step 3 was committed"):
            disturbed(spec, root, 4)
        return
    found = disturbed(spec, root, 4)
    assert found.repeated == 2
    assert found.start_seconds < found.recovery_seconds
    assert found.recovery_seconds >= 0.3


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="the parts are prepare, train, predict"):
        Nodes(parts=("all",)).run()
    with pytest.raises(ValueError, match="--nodes 3 must be 2 or more and divide"):
        Nodes(nodes=3).run()
    with pytest.raises(ValueError, match="--workers divide"):
        Recovery(workers=3).run()
