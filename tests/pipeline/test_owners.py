"""Several processes with the same stages to make: each stage is made once, and a paused owner destroys nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from raymae.features.store import FeatureStore
from raymae.storage.commits import complete, latest_step
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store
from tests.support.owner import STAGES, make_store_of, plan_of
from tests.support.paths import ROOT


@pytest.fixture
def storage(clips: pa.Table, tmp_path: Path) -> Folder:
    """A storage with a finished store."""
    found = Folder(str(tmp_path / "storage"))
    found.write_table("clips.parquet", clips)
    make_store_of(plan_of(found), make_store(tmp_path / "store", clips))
    return found


def start(storage: Folder, expire: float, renew: float) -> subprocess.Popen[str]:
    """One of the processes."""
    command = [sys.executable, "-m", "tests.support.owner", storage.url, str(expire), str(renew)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights_of_one(storage: Folder, folder: Path) -> list[bytes]:
    """The weights of both stages, trained here without anybody else."""
    plan, found = plan_of(storage), []
    for name in STAGES:
        spec = plan.spec(name)
        alone = replace(spec, artifact=Folder(str(folder / name)))
        run_stage(alone, BareSession(spec.store, alone.artifact))
        found.append(alone.artifact.read_bytes("model.safetensors"))
    return found


def test_two_processes_make_each_stage_once(storage: Folder, tmp_path: Path) -> None:
    owners = [start(storage, 60, 15) for _ in range(2)]
    ended = [owner.communicate(timeout=300) for owner in owners]
    assert [owner.returncode for owner in owners] == [0, 0], ended
    made = [json.loads(out) for out, _ in ended]
    assert sorted(made[0] + made[1]) == sorted(STAGES)
    nodes = plan_of(storage).nodes
    found = [nodes[name].artifact.read_checked("model.safetensors") for name in STAGES]
    assert found == weights_of_one(storage, tmp_path)


def test_an_owner_that_was_paused_stops_before_it_writes_and_uses_the_others_result(
    storage: Folder, tmp_path: Path
) -> None:
    pretrain = plan_of(storage).nodes["pretrain"].artifact
    paused = start(storage, 2, 0.3)
    until = time.monotonic() + 120
    while latest_step(pretrain) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    paused.send_signal(signal.SIGSTOP)
    at = latest_step(pretrain) or 0
    other = start(storage, 2, 0.3)
    while (latest_step(pretrain) or 0) <= at:
        assert time.monotonic() < until, "nobody took over"
        time.sleep(0.01)
    paused.send_signal(signal.SIGCONT)
    ended = [owner.communicate(timeout=300) for owner in (paused, other)]
    assert [owner.returncode for owner in (paused, other)] == [0, 0], ended
    assert "pretrain" in json.loads(ended[1][0])
    assert "was taken over" in ended[0][1]
    assert "waiting for its result" in ended[0][1]
    nodes = plan_of(storage).nodes
    found = [nodes[name].artifact.read_checked("model.safetensors") for name in STAGES]
    assert found == weights_of_one(storage, tmp_path)
    assert not complete(pretrain)


def test_the_store_is_reused(storage: Folder) -> None:
    plan = plan_of(storage)
    assert plan.nodes["prepare"].reused
    assert isinstance(plan.store, FeatureStore)
