"""SIGKILL of training workers, which read a store or are fed by Ray Data: weights and clips of an undisturbed run.

The loss of several workers with their nodes is in test_faults.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raymae.benchmark.scale.recovery import training_workers
from raymae.cluster import train
from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.features.streaming import StreamedClips
from raymae.storage.commits import latest_step, step_of
from raymae.storage.events import read_events
from raymae.storage.folder import COMMITS, Folder
from raymae.training.guards.watchdog import failures
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips
from tests.support.training import TINY, trails

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1500)]

PATIENCE = 450
KILLS = 2
"""How many workers of a stage are killed."""
COMMIT_MINUTES = 0.002


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store of 352 clips in 22 shards."""
    store = make_store(tmp_path_factory.mktemp("store"), write_clips(tmp_path_factory.mktemp("clips"), 352))
    assert len(store.manifest["shards"]) >= 20
    return store


@pytest.fixture(scope="module")
def streamed(shards: FeatureStore) -> StreamedClips:
    """The same clips, decoded anew in every epoch."""
    return StreamedClips(shards.folder, shards.shards, timeout=10)


@dataclass(frozen=True)
class Kill:
    """The state when a worker was killed."""

    pid: int
    commit: int
    """Step of the newest finished checkpoint."""
    committed: dict[int, float]
    """Times at which the steps up to the checkpoint were reported."""


def stage(store: FeatureStore, folder: Path, kind: str, **compute: int) -> StageSpec:
    """A stage of a few hundred steps with many checkpoints a second; if it is streamed, over several segments."""
    config = replace(
        TINY,
        pretrain=replace(TINY.pretrain, epochs=24, report_steps=1, commit_minutes=COMMIT_MINUTES),
        finetune=replace(TINY.finetune, epochs=36, report_steps=1, commit_minutes=COMMIT_MINUTES),
        compute=ComputeConfig(torch_threads=1, feed_windows=16, **compute),
    )
    return StageSpec(name=kind, kind=kind, config=config, artifact=Folder(str(folder)), store=store)  # type: ignore[arg-type]


def undisturbed(spec: StageSpec) -> StageSpec:
    """The same stage, run in this process."""
    torch.set_num_threads(1)
    run_stage(spec, BareSession(spec.store, spec.artifact))
    return spec


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; TimeoutError after `PATIENCE` seconds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the step to kill a worker at was not reached")
        time.sleep(0.001)


def kill(artifact: Folder, pid: int) -> Kill:
    """Send SIGKILL; returns what the worker had done by then."""
    os.kill(pid, signal.SIGKILL)
    commit, times = latest_step(artifact), {event["step"]: event["time"] for event in read_events(artifact)}
    assert commit is not None, "it was killed before its first checkpoint"
    return Kill(pid, commit, {step: when for step, when in times.items() if step <= commit})


def kill_at(spec: StageSpec, step: int) -> Kill:
    """Kill a worker as soon as a step is reported."""
    wait_for(lambda: spec.artifact.exists(f"events/{step:09d}.json"))
    return kill(spec.artifact, training_workers()[0])


def half_written(artifact: Folder) -> bool:
    """Whether the newest checkpoint is incomplete: some files are written, at least in part, but not commit.json."""
    names = (artifact / COMMITS).names()
    if not names or step_of(names[-1]) <= (latest_step(artifact) or 0):
        return False
    files = (artifact / COMMITS / names[-1]).names()
    return bool(files) and "commit.json" not in files


def kill_in_commit(spec: StageSpec, step: int) -> Kill:
    """Kill the worker while it writes a checkpoint after a step: it is halted first, to check what is written."""
    wait_for(lambda: spec.artifact.exists(f"events/{step:09d}.json"))
    (pid,) = training_workers()
    while True:
        wait_for(lambda: half_written(spec.artifact))
        os.kill(pid, signal.SIGSTOP)
        if half_written(spec.artifact):
            found = kill(spec.artifact, pid)
            assert half_written(spec.artifact)
            return found
        os.kill(pid, signal.SIGCONT)


def steps_inside_epochs(spec: StageSpec, count: int) -> list[int]:
    """A random step in the first half of one epoch in each of `count` parts of the run."""
    order = spec.order()
    per_epoch = order.rows_per_epoch // order.global_batch_size
    first = np.linspace(3, order.epochs - 1, count, endpoint=False).astype(int) * order.rows_per_epoch
    steps = first // order.global_batch_size + np.random.default_rng(spec.seed()).integers(1, per_epoch // 2, count)
    return [int(step) for step in steps]


def assert_as_undisturbed(spec: StageSpec, other: StageSpec, kills: list[Kill]) -> None:
    """Every step trained on the same clips as in an undisturbed run, and none before a checkpoint was repeated."""
    events = {event["step"]: event for event in read_events(spec.artifact)}
    assert {step: event["trail"] for step, event in events.items()} == trails(spec)
    assert [event["trail"] for event in events.values()] == [event["trail"] for event in read_events(other.artifact)]
    for one in kills:
        assert {step: events[step]["time"] for step in one.committed} == one.committed, (
            "a step before a checkpoint was repeated"
        )


@pytest.mark.parametrize(("kind", "source"), [("pretrain", "streamed"), ("finetune", "shards")])
def test_kills_change_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, ray_cluster: None, kind: str, source: str
) -> None:
    """Each kill costs a start of the worker group, up to half a minute on two busy cores: hence so few."""
    shards = request.getfixturevalue(source)
    whole = undisturbed(stage(shards, tmp_path / "whole", kind))
    spec = stage(shards, tmp_path / "killed", kind, num_workers=1, max_failures=KILLS)
    *steps, in_commit = steps_inside_epochs(spec, KILLS)

    def killer() -> list[Kill]:
        return [*(kill_at(spec, step) for step in steps), kill_in_commit(spec, in_commit)]

    with ThreadPoolExecutor(1) as beside:
        kills = beside.submit(killer)
        train.train([spec], Folder(str(tmp_path)))
    assert len({one.pid for one in kills.result()}) == KILLS
    assert len(failures([spec.artifact])) == KILLS
    assert all("rank 0: " in line for line in failures([spec.artifact]))
    assert_as_undisturbed(spec, whole, kills.result())
    assert spec.artifact.read_bytes("model.safetensors") == whole.artifact.read_bytes("model.safetensors")
