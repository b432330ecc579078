"""A cluster of real nodes whose processes are killed: only the steps after the last checkpoint are lost.

A pre-training, submitted as a job, survives it and has the result of an uninterrupted run.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.scale.recovery import title
from raymae.cli.arguments import parse
from raymae.pipeline.run import make_plan
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.nodes import RAY, ROOT, Nodes, wait_until
from tests.support.training import trails

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head and two nodes, each with room for one training worker, that require a token."""
    with Nodes(tmp_path_factory.mktemp("nodes"), token=True) as found:
        yield found


@dataclass
class Run:
    """A pre-training of some hundred short steps with a checkpoint every second, and the steps recorded of it."""

    nodes: Nodes
    folder: Path
    table: Path
    kept: dict[int, float] = field(default_factory=dict)
    """Times at which the steps up to the checkpoint before each fault were reported."""

    @property
    def arguments(self) -> list[str]:
        """The command line of the job."""
        fields = {
            "--storage": self.folder,
            "--json": self.folder / "result.json",
            "--data.dataset": "table",
            "--data.tables": self.table,
            "--pretrain.epochs": 150,
            "--pretrain.mixing-group": 16,
            "--pretrain.precision": "fp32",
            "--pretrain.report-steps": 1,
            "--pretrain.commit-minutes": 0.02,
            "--compute.num-workers": 2,
            "--compute.cpus-per-worker": 2,
            "--compute.torch-threads": 1,
            "--compute.wait-minutes": 0.6,
        }
        return ["synthetic", *(str(word) for pair in fields.items() for word in pair)]

    @property
    def artifact(self) -> Folder:
        """The folder of the pre-training."""
        (path,) = self.folder.glob("artifacts/pretrain/*")
        return Folder(str(path))

    def step(self) -> int:
        """The step of the newest checkpoint."""
        return (latest_step(self.artifact) or 0) if list(self.folder.glob("artifacts/pretrain/*")) else 0

    def events(self) -> dict[int, dict[str, Any]]:
        """The events by step."""
        return {event["step"]: event for event in read_events(self.artifact)}

    def on(self, steps: int) -> None:
        """Wait for a checkpoint so many steps later; the steps up to it are recorded."""
        after = self.step() + steps
        wait_until(lambda: self.step() >= after, f"the checkpoint of step {after}", 300)
        step = self.step()
        self.kept |= {number: event["time"] for number, event in self.events().items() if number <= step}

    def submit(self, name: str) -> subprocess.Popen[bytes]:
        """Submit it to the cluster as a job; its log is written to a file."""
        submit = [RAY, "job", "submit", "--address", self.nodes.job_server, "--working-dir", "."]
        submit += ["--submission-id", name]
        with (self.folder / "job.log").open("ab") as log:
            return subprocess.Popen(
                [*submit, "--", "python", "jobs/pretrain.py", *self.arguments],
                cwd=ROOT,
                env=self.nodes.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def spec(self) -> StageSpec:
        """The stage, once its features are prepared."""
        return make_plan(parse(self.arguments), "pretrain", Folder(str(self.folder))).spec("pretrain")

    @contextmanager
    def undisturbed(self, folder: Path) -> Iterator[Folder]:
        """Train the same stage in this process, while the block runs; its artifact."""
        torch.set_num_threads(1)
        alone = replace(self.spec, artifact=Folder(str(folder)))
        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(run_stage, alone, BareSession(alone.store, alone.artifact))
            yield alone.artifact
        assert ended.result()

    @property
    def log(self) -> str:
        """The output of the jobs."""
        return (self.folder / "job.log").read_text()


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Run:
    """The run, before its first step."""
    folder = tmp_path_factory.mktemp("recordings")
    return Run(nodes, tmp_path_factory.mktemp("storage"), write_table(folder, write_clips(folder, 120)))


def driver_of(job: subprocess.Popen[bytes], nodes: Nodes) -> int:
    """The process of a job's driver, which the head runs."""
    for pid in process_tree(nodes.head.pid):
        words = title(pid).split(b"\0")
        if words[0].endswith(b"python") and b"jobs/pretrain.py" in words:
            return pid
    raise LookupError("the job has no driver")


def ask(nodes: Nodes, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ray job …` against the cluster's job server."""
    command = [RAY, "job", words[0], "--address", nodes.job_server, *words[1:]]
    return subprocess.run(command, env=nodes.environment | environment, capture_output=True, text=True, timeout=240)


def test_a_run_survives_the_loss_of_a_worker_a_node_and_its_driver(run: Run, nodes: Nodes, tmp_path: Path) -> None:
    job = run.submit("first")
    run.on(20)
    stranger = ask(nodes, "list", RAY_AUTH_MODE="disabled")
    assert stranger.returncode != 0
    assert "token" in stranger.stderr.lower()

    os.kill(nodes.training_workers()[0], signal.SIGKILL)  # another replaces it
    run.on(20)
    nodes.kill(nodes.nodes[1])  # nothing replaces it: one worker resumes, once it is given up
    with run.undisturbed(tmp_path) as alone:
        run.on(20)
        os.kill(driver_of(job, nodes), signal.SIGKILL)
        assert job.wait(120) == 1
        run.on(0)
        nodes.add()
        job = run.submit("second")
        wait_until(lambda: len(nodes.training_workers()) == 2, "the second worker")
        assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)


def test_a_run_leaves_a_draining_node_and_can_be_stopped(run: Run, nodes: Nodes, tmp_path: Path) -> None:
    job = run.submit("third")
    run.on(20)
    nodes.drain(nodes.nodes[1], seconds=12)
    wait_until(lambda: "workers: 1, 2 before" in run.log, "the preemption", 300)
    nodes.kill(nodes.nodes[1])
    run.on(1)
    with nodes.training_halted():
        nodes.add()  # both resume from a checkpoint
    wait_until(lambda: "workers: 2, 1 before" in run.log, "the second worker", 300)
    run.on(20)

    assert ask(nodes, "stop", "third").returncode == 0
    job.wait(120)  # not a failure, to the client
    assert "was stopped" in ask(nodes, "status", "third").stdout
    run.on(0)
    with run.undisturbed(tmp_path) as alone:
        job = run.submit("fourth")
        assert job.wait(600) == 0, run.log[-3000:]
    assert_as_undisturbed(run, alone)


def assert_as_undisturbed(run: Run, alone: Folder) -> None:
    """Every step trained on its clips, none before a fault's checkpoint was repeated, and the weights are the same."""
    assert "pretrain: " in run.log.rpartition("to resume from step")[2], "the job's log has no result"
    events = run.events()
    assert {step: event["trail"] for step, event in events.items()} == trails(run.spec)
    assert {step: events[step]["time"] for step in run.kept} == run.kept, "a step before a checkpoint was repeated"
    found, expected = (load_tensors(one.read_bytes("model.safetensors")) for one in (run.artifact, alone))
    for name, value in expected.items():  # two workers sum in another order
        np.testing.assert_allclose(found[name], value, atol=1e-3)
