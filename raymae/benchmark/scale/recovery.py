"""`recovery`: time to resume training after a worker was killed, against the start of the same run."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.speed.loop import MOST_WORKERS, Loop, train_on_ray
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

WORKER = b"ray::RayTrainWorker"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Pre-train the recipe `small` on noise and send SIGKILL to a worker at a step.

    The start of the worker group is timed from the call to the end of the first step, with Ray already running;
    recovery is timed from the signal to the end of the next step. Both include one training step. Medians over the
    runs are reported.

    `--json` keys: `start_seconds`, `recovery_seconds`, `repeated_steps` (the maximum over the runs; repeating a step
    that a checkpoint holds is an error), `workers`, `runs`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    runs: int = 3
    """Number of runs, each on its own Ray."""
    workers: int = 1
    """Training workers; the last one is killed."""
    step: int = 24
    """Step at which the worker is killed."""
    after: int = 16
    """Steps after it."""
    cpus: int = 2
    """CPUs of Ray."""

    def run(self) -> Result:
        """Measure."""
        if min(self.runs, self.workers, self.step, self.after) < 1 or self.workers > MOST_WORKERS:
            raise ValueError(
                f"--runs, --step, --after and --workers must be 1 or more; --workers at most {MOST_WORKERS}"
            )
        runs = []
        for _ in range(self.runs):
            with tempfile.TemporaryDirectory(prefix="raymae-recovery-") as folder:
                spec = self.spec(Folder(folder))
                with own_ray(self.cpus, object_store_mb=1000):
                    runs.append(train_with_kill(spec, Folder(folder), self.step))
        start = statistics.median(one.start_seconds for one in runs)
        recovery = statistics.median(one.recovery_seconds for one in runs)
        repeated = max(one.repeated for one in runs)
        values = {
            "start_seconds": start,
            "recovery_seconds": recovery,
            "repeated_steps": repeated,
            "workers": self.workers,
            "runs": self.runs,
        }
        what = f"resuming training after SIGKILL to {'the' if self.workers == 1 else 'a'} worker"
        row = Row("recovery", what, f"{recovery:.1f} s", f"{start:.1f} s (start)", recovery / start, 1.5, at_most=True)
        return Result("recovery", [row], values, f"Repeated steps, all after the last checkpoint: {repeated} at most.")

    def spec(self, root: Folder) -> StageSpec:
        """The stage, which writes a checkpoint every few steps."""
        spec = Loop(before=1, steps=self.step, after=self.after).spec(root)
        train = replace(spec.config.pretrain, commit_minutes=0.05)
        compute = replace(
            spec.config.compute, num_workers=self.workers, torch_threads=max(1, self.cpus // self.workers)
        )
        return replace(spec, config=replace(spec.config, pretrain=train, compute=compute), artifact=root / "run")


@dataclass(frozen=True)
class RecoveryRun:
    """Measurements of one run."""

    start_seconds: float
    recovery_seconds: float
    repeated: int
    """Number of repeated steps."""


def train_with_kill(spec: StageSpec, root: Folder, step: int) -> RecoveryRun:
    """Train the stage and kill a worker at the end of a step; ValueError if a step of the checkpoint was repeated."""
    begun = time.time()
    with kill_worker(spec.artifact, step) as kills:
        train_on_ray(spec, root)
    (kill,) = kills
    after = [event["time"] for event in read_events(spec.artifact) if event["time"] > kill.time]
    repeated = [event["step"] for event in read_events(spec.artifact) if event["time"] > kill.time]
    if min(repeated) <= kill.committed:
        raise ValueError(f"recovery: step {min(repeated)} was repeated, but the checkpoint holds step {kill.committed}")
    return RecoveryRun(kill.first - begun, min(after) - kill.time, kill.step + 1 - min(repeated))


@dataclass(frozen=True)
class Kill:
    """When and at which step a worker was killed."""

    time: float
    step: int
    """Last step reported before."""
    committed: int
    """Step of the last checkpoint; 0 without one."""
    first: float
    """Time of the end of the first step."""


@contextmanager
def kill_worker(artifact: Folder, step: int) -> Iterator[list[Kill]]:
    """Kill one training worker of this process at the end of a step, while the block trains."""
    kills: list[Kill] = []
    stop = threading.Event()

    def watch() -> None:
        while not artifact.exists(f"events/{step:09d}.json"):
            if stop.wait(0.01):
                return
        pid = training_workers()[-1]
        os.kill(pid, signal.SIGKILL)
        now, events = time.time(), read_events(artifact)
        newest = max(event["step"] for event in events if event["time"] <= now)
        kills.append(Kill(now, newest, latest_step(artifact) or 0, events[0]["time"]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join()


def training_workers(root: int | None = None) -> list[int]:
    """PIDs of Ray Train's workers among the descendants of a process, by default this one."""
    return [pid for pid in process_tree(root or os.getpid()) if title(pid).startswith(WORKER)]


def title(pid: int) -> bytes:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
