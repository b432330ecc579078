"""A worker that hangs is ended, with the stacks of its threads, whatever its main thread does; the run resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymae.cluster import train as cluster
from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.pipeline.reports.progress_bars import Follower
from raymae.storage.commits import latest_step
from raymae.storage.folder import Folder
from raymae.training.guards import watchdog
from raymae.training.guards.watchdog import EXIT_STATUS, STACKS, Watchdog, hang_error, hangs
from tests.support.hanging import STEP, HangingFolder, hanging_spec
from tests.support.hanging import main as train_hanging
from tests.support.paths import ROOT


def train(kind: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Train a stage in a separate process."""
    command = [sys.executable, "-m", "tests.support.hanging", kind, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_hanging_process_ends_with_its_stacks_and_resumes(tmp_path: Path) -> None:
    done = train("hanging", tmp_path / "it")
    assert done.returncode == EXIT_STATUS, done.stderr
    message = f"rank 0 made no step for 0.1 minutes after step {STEP}"
    assert message in done.stderr
    artifact = Folder(str(tmp_path / "it/run"))
    text = (artifact / STACKS).read_bytes(f"rank-0-{STEP:09d}.txt").decode()
    assert text.startswith(message)
    assert "MainThread" in text
    assert "hanging.py" in text
    assert "time.sleep(SECONDS)" in text
    (line,) = hangs([artifact])
    assert line.startswith(f"rank 0 hung after step {STEP}; ")
    assert line.endswith(f"{STACKS}/rank-0-{STEP:09d}.txt")
    assert latest_step(artifact) == STEP - 1

    train_hanging("hanging", tmp_path / "it")
    assert artifact.is_done()


@pytest.mark.slow
def test_a_process_that_keeps_the_interpreters_lock_ends_too(tmp_path: Path) -> None:
    done = train("locked", tmp_path / "it")
    assert done.returncode not in (0, EXIT_STATUS)
    assert "Timeout" in done.stderr
    assert "hanging.py" in done.stderr


def test_a_process_that_beats_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", ended.append)
    with Watchdog(Folder(str(tmp_path)), 3, 0.4) as dog:
        dog.begin(5)
        time.sleep(0.8)  # the first step may take longer
        for step in range(8):
            time.sleep(0.1)
            dog.beat(step)
        assert not ended
        time.sleep(0.8)
        assert ended[0] == EXIT_STATUS
    dog._thread.join(10)  # it may still finish its last round
    assert not dog._thread.is_alive(), "it keeps running after its block"
    assert (Folder(str(tmp_path)) / STACKS).names() == ["rank-3-000000007.txt"]


def test_a_limit_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match=r"compute\.stall_minutes = 0 must be positive"):
        ComputeConfig(stall_minutes=0)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.fault
def test_ray_train_restarts_a_hanging_worker(
    store: FeatureStore, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = HangingFolder(str(tmp_path / "run"))
    spec = hanging_spec(store, artifact, 20)
    with Follower([spec]):
        cluster.train([spec], Folder(str(tmp_path)))
    assert artifact.result()["steps"] == spec.order().steps
    lines = [record.getMessage() for record in caplog.records if "hung" in record.getMessage()]
    assert lines == [f"pretrain: {line}" for line in hangs([artifact])]
    assert f"rank 0 hung after step {STEP}" in lines[0]


def test_a_hang_is_the_error_of_a_worker_that_died_without_one() -> None:
    died = "Training failed due to worker errors: [Rank 0 Error] ray.exceptions.ActorDiedError: The actor died"
    lines = {"rank 0 hung after step 4; the stacks of its threads: x/stacks/rank-0-000000004.txt"}
    assert str(hang_error(died, lines)) == lines.pop()
    assert hang_error(died, set()) is None
    assert hang_error("[Rank 0 Error] ValueError: shard x is damaged", {"rank 1 hung after step 2"}) is None
