"""A pre-training as a job on a cluster of real nodes, and what it has to look like whatever happened to these."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors

from raymae.cli.arguments import parse
from raymae.pipeline.plan.make import make_plan
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.nodes import RAY, ROOT, Nodes, wait_until
from tests.support.training import trails


@dataclass
class Run:
    """A pre-training of some hundred short steps with a checkpoint every second, and the steps recorded of it."""

    nodes: Nodes
    folder: Path
    table: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """More settings of the job, by their options."""
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
        fields |= self.settings
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
        arguments = [*self.arguments, "--compute.address", self.nodes.address]  # this machine has no room of its own
        return make_plan(parse(arguments), "pretrain", Folder(str(self.folder))).spec("pretrain")

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


def new_run(nodes: Nodes, folder: Path, **settings: Any) -> Run:
    """A run of 120 clips, before its first step; `settings` by the names of their options, with underscores."""
    options = {f"--{name.replace('__', '.').replace('_', '-')}": value for name, value in settings.items()}
    (recordings := folder / "recordings").mkdir()
    (storage := folder / "storage").mkdir()
    return Run(nodes, storage, write_table(recordings, write_clips(recordings, 120)), options)


def ask(nodes: Nodes, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ray job …` against the cluster's job server."""
    command = [RAY, "job", words[0], "--address", nodes.job_server, *words[1:]]
    return subprocess.run(command, env=nodes.environment | environment, capture_output=True, text=True, timeout=240)


def assert_as_undisturbed(run: Run, alone: Folder) -> None:
    """Every step trained on its clips, none before a fault's checkpoint was repeated, and the weights are the same."""
    assert "pretrain: " in run.log.rpartition("to resume from step")[2], "the job's log has no result"
    events = run.events()
    assert {step: event["trail"] for step, event in events.items()} == trails(run.spec)
    assert {step: events[step]["time"] for step in run.kept} == run.kept, "a step before a checkpoint was repeated"
    found, expected = (load_tensors(one.read_bytes("model.safetensors")) for one in (run.artifact, alone))
    for name, value in expected.items():  # two workers sum in another order
        np.testing.assert_allclose(found[name], value, atol=1e-3)
