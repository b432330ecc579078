"""Real signals to real processes: what is lost is what came after the last commit, nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from raymae.artifacts import Folder, latest_step, read_events
from tests.audio_files import write_clips, write_table

pytestmark = [pytest.mark.ray, pytest.mark.fault]

ROOT = Path(__file__).parents[1]
PATIENCE = 240


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> list[str]:
    """A pre-training of a few hundred short steps that commits every second, on the tests' own cluster."""
    folder = tmp_path_factory.mktemp("recordings")
    table = write_table(folder, write_clips(folder, 120))
    storage = tmp_path_factory.mktemp("storage")
    fields = {
        "--storage": storage,
        "--json": storage / "result.json",
        "--data.dataset": "table",
        "--data.tables": table,
        "--pretrain.epochs": 120,
        "--pretrain.commit-minutes": 0.02,
        "--compute.address": ray.get_runtime_context().gcs_address,
        "--compute.torch-threads": 1,
    }
    return [
        sys.executable,
        str(ROOT / "jobs/pretrain.py"),
        "synthetic",
        *(str(x) for pair in fields.items() for x in pair),
    ]


def run(command: list[str]) -> tuple[str, dict[str, Any]]:
    """What the job printed, and its result."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(Path(command[command.index("--json") + 1]).read_text())


def wait_for_commit(storage: Path, driver: subprocess.Popen[bytes]) -> tuple[Folder, int]:
    """The folder of the pre-training and the step of its first commit."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        assert driver.poll() is None, "the job ended before it committed"
        for path in storage.glob("artifacts/pretrain/*"):
            step = latest_step(Folder(str(path)))
            if step is not None:
                return Folder(str(path)), step
        time.sleep(0.05)
    raise TimeoutError("no commit")


def test_a_killed_driver_goes_on_from_its_last_commit(command: list[str]) -> None:
    storage = Path(command[command.index("--storage") + 1])
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    artifact, _ = wait_for_commit(storage, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2)  # Ray ends the dead driver's workers, which may commit once more
    assert not artifact.is_done()
    step = latest_step(artifact)
    assert step is not None
    before = {event["step"]: event["time"] for event in read_events(artifact) if event["step"] <= step}

    printed, result = run(command)
    assert f"to go on from step {step}" in printed
    assert result["stages"]["prepare"]["reused"]
    assert not result["stages"]["pretrain"]["reused"]
    events = {event["step"]: event["time"] for event in read_events(artifact)}
    assert {number: events[number] for number in before} == before, "a committed step was repeated"
    assert max(events) == artifact.result()["steps"]

    printed, result = run(command)
    assert all(stage["reused"] for stage in result["stages"].values())
    assert "Ray is up" not in printed
