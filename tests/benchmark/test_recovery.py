"""`benchmark recovery` and `nodes`: the timed spans, the error for a repeated step of the checkpoint, option checks."""

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
from raymae.benchmark.scale.recovery import Recovery, train_with_kill
from raymae.storage.events import write_event
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec


@pytest.fixture
def victim(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process in place of the only training worker."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        monkeypatch.setattr(recovery, "training_workers", lambda: [process.pid])
        yield process
        process.kill()


def report_step(artifact: Folder, step: int) -> None:
    write_event(artifact, {"step": step, "time": time.time(), "metrics": {}})


@pytest.mark.parametrize(("committed", "begins"), [(2, 3), (3, 3)])
def test_recovery_time_runs_from_the_signal_to_the_next_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: subprocess.Popen[bytes], committed: int, begins: int
) -> None:
    root = Folder(str(tmp_path))
    spec = replace(Recovery(step=4, after=2).spec(root), artifact=root / "run")

    def train(spec: StageSpec, root: Folder) -> None:
        for step in (1, 2, 3, 4):
            time.sleep(0.01)
            report_step(spec.artifact, step)
        assert victim.wait(30) < 0
        for step in range(begins, 7):
            time.sleep(0.3)
            report_step(spec.artifact, step)

    monkeypatch.setattr(recovery, "train_on_ray", train)
    monkeypatch.setattr(recovery, "latest_step", lambda artifact: committed)
    if begins <= committed:
        with pytest.raises(ValueError, match="step 3 was repeated, but the checkpoint holds step 3"):
            train_with_kill(spec, root, 4)
        return
    found = train_with_kill(spec, root, 4)
    assert found.repeated == 2
    assert found.start_seconds < found.recovery_seconds
    assert found.recovery_seconds >= 0.3


def test_invalid_options_raise() -> None:
    with pytest.raises(ValueError, match="the parts are prepare, train, predict"):
        Nodes(parts=("all",)).run()
    with pytest.raises(ValueError, match="--nodes 9 must lie between 2 and 8"):
        Nodes(nodes=9).run()
    with pytest.raises(ValueError, match="--workers at most 8"):
        Recovery(workers=9).run()
