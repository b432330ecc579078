"""A run on Ray loses its training worker and resumes on Ray, then its driver and resumes in this process.

Lost nodes are in test_elastic.py; real ones, with several workers, a job server and a token, in test_faults.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load as load_tensors

from raymae.benchmark.scale.recovery import training_workers
from raymae.cli.arguments import parse
from raymae.cluster import train
from raymae.features.store import FeatureStore
from raymae.pipeline.run import make_plan
from raymae.storage.events import latest_step, read_events
from raymae.storage.folder import Folder, open_storage
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import damaged_copy, write_clips, write_table
from tests.support.nodes import wait_until
from tests.support.paths import ROOT
from tests.support.training import TINY, make_spec, trails

pytestmark = [pytest.mark.ray, pytest.mark.fault]


def arguments(folder: Path) -> list[str]:
    """The command line of a pre-training of a few hundred steps, which writes checkpoints all the time."""
    table = write_table(folder, write_clips(folder, 120))
    fields = {
        "--storage": folder / "storage",
        "--data.dataset": "table",
        "--data.tables": table,
        "--pretrain.epochs": 60,
        "--pretrain.micro-batch-size": 16,
        "--pretrain.precision": "fp32",
        "--pretrain.report-steps": 1,
        "--pretrain.commit-minutes": 0.005,
        "--pretrain.probe-clips": 0,
        "--compute.torch-threads": 1,
        "--compute.data-workers": 1,
        "--tracking.patience-minutes": 0,
    }
    return ["synthetic", *(str(word) for pair in fields.items() for word in pair)]


@dataclass(frozen=True)
class Interrupted:
    """A run that lost its worker and then its driver: its stage, and when its kept steps were reported."""

    spec: StageSpec
    kept: dict[int, float]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Interrupted:
    """A run on Ray whose training worker is killed, and its driver once it has resumed."""
    folder = tmp_path_factory.mktemp("interrupted")
    options = arguments(folder)
    kept: dict[int, float] = {}

    def artifact() -> Folder | None:
        found = list((folder / "storage").glob("artifacts/pretrain/*"))
        return Folder(str(found[0])) if found else None

    def step() -> int:
        return (latest_step(found) or 0) if (found := artifact()) else 0

    def train_on(steps: int) -> None:
        """Wait for more checkpoints, and remember when the steps before the newest one were reported."""
        after = step() + steps
        wait_until(lambda: step() >= after or driver.poll() is not None, f"the checkpoint of step {after}")
        assert driver.poll() is None, log.read_text()[-3000:]
        kept.update({event["step"]: event["time"] for event in read_events(artifact()) if event["step"] <= step()})  # type: ignore[arg-type]

    log = folder / "driver.log"
    with log.open("wb") as output:
        command = [sys.executable, "jobs/pretrain.py", *options]
        command += ["--compute.address", ray.get_runtime_context().gcs_address]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        train_on(10)
        os.kill(training_workers()[0], signal.SIGKILL)
        train_on(10)
    finally:
        driver.kill()
        driver.wait()
    wait_until(lambda: not training_workers(), "the end of the dead driver's workers")
    config = parse(options, "")
    return Interrupted(make_plan(config, "pretrain", open_storage(config.storage)).spec("pretrain"), kept)


def test_a_run_resumes_after_the_loss_of_its_worker_and_its_driver(interrupted: Interrupted, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec, kept = interrupted.spec, interrupted.kept
    run_stage(spec, BareSession(spec.store, spec.artifact))
    events = {event["step"]: event for event in read_events(spec.artifact)}
    assert {number: event["trail"] for number, event in events.items()} == trails(spec)
    assert {number: events[number]["time"] for number in kept} == kept, "a step before a checkpoint was repeated"
    seldom = replace(spec.config, pretrain=replace(spec.config.pretrain, report_steps=100, commit_minutes=10))
    alone = replace(spec, config=seldom, artifact=Folder(str(tmp_path / "alone")))
    run_stage(alone, BareSession(alone.store, alone.artifact))
    found, expected = (load_tensors(one.artifact.read_bytes("model.safetensors")) for one in (spec, alone))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow  # the message is checked without Ray in test_errors.py
def test_damage_ends_a_run_in_one_line(store: FeatureStore, tmp_path: Path, ray_cluster: None) -> None:
    own = damaged_copy(store, tmp_path)
    config = replace(TINY, compute=replace(TINY.compute, max_failures=0))
    spec = make_spec(own, tmp_path / "run", config=config)
    with pytest.raises(ValueError, match=r"^shard .* is damaged .* computes it again$"):
        train.train([spec], Folder(str(tmp_path)))
