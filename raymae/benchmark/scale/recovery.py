"""`recovery`: how long a killed training worker keeps a run from training, against the same run's start."""

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
from raymae.benchmark.speed.loop import Loop, train_on_ray
from raymae.storage.events import latest_step, read_events
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

WORKER = b"ray::RayTrainWorker"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Pre-training of the recipe `small` on noise, of which a worker gets SIGKILL at a step.

    The start of the worker group is timed from the call to the end of the first step, with Ray itself running; the
    recovery from the signal to the end of the next step. Both hold one step of training. The medians of all runs count.

    `--json` keys: `start_seconds`, `recovery_seconds`, `repeated_steps` (the most of all runs; one that was
    committed is an error), `workers`, `runs`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    runs: int = 3
    """Runs, each on a Ray of its own."""
    workers: int = 1
    """Training workers, of which the last is killed."""
    step: int = 24
    """The step at which it is killed."""
    after: int = 16
    """Steps that follow it."""
    cpus: int = 2
    """CPUs of Ray."""

    def run(self) -> Result:
        """Measure."""
        if min(self.runs, self.workers, self.step, self.after) < 1 or 64 % self.workers:
            raise ValueError("--runs, --step and --after must be 1 or more, and --workers divide a batch of 64 clips")
        runs = []
        for _ in range(self.runs):
            with tempfile.TemporaryDirectory(prefix="raymae-recovery-") as folder:
                spec = self.spec(Folder(folder))
                with own_ray(self.cpus, object_store_mb=1000):
                    runs.append(disturbed(spec, Folder(folder), self.step))
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
        what = f"training again after SIGKILL to {'the' if self.workers == 1 else 'a'} worker"
        row = Row("recovery", what, f"{recovery:.1f} s", f"{start:.1f} s (start)", recovery / start, 1.5, at_most=True)
        return Result("recovery", [row], values, f"Steps repeated, none of them committed: {repeated} at most.")

    def spec(self, root: Folder) -> StageSpec:
        """The stage, which commits every few steps."""
        spec = Loop(before=1, steps=self.step, after=self.after).spec(root)
        train = replace(spec.config.pretrain, micro_batch_size=64 // self.workers, commit_minutes=0.05)
        compute = replace(
            spec.config.compute, num_workers=self.workers, torch_threads=max(1, self.cpus // self.workers)
        )
        return replace(spec, config=replace(spec.config, pretrain=train, compute=compute), artifact=root / "run")


@dataclass(frozen=True)
class Disturbed:
    """What was seen of a run."""

    start_seconds: float
    recovery_seconds: float
    repeated: int
    """Steps that were made again."""


def disturbed(spec: StageSpec, root: Folder, step: int) -> Disturbed:
    """Train the stage, killing a worker at the end of a step; ValueError where a committed step was made again."""
    begun = time.time()
    with killer(spec.artifact, step) as kills:
        train_on_ray(spec, root)
    (kill,) = kills
    after = [event["time"] for event in read_events(spec.artifact) if event["time"] > kill.time]
    again = [event["step"] for event in read_events(spec.artifact) if event["time"] > kill.time]
    if min(again) <= kill.committed:
        raise ValueError(f"recovery: step {min(again)} was made again, and step {kill.committed} was committed")
    return Disturbed(kill.first - begun, min(after) - kill.time, kill.step + 1 - min(again))


@dataclass(frozen=True)
class Kill:
    """A worker's end."""

    time: float
    step: int
    """The newest step by then."""
    committed: int
    first: float
    """When the first step was done."""


@contextmanager
def killer(artifact: Folder, step: int) -> Iterator[list[Kill]]:
    """While the block trains, one training worker below this process is killed at the end of a step."""
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
    """Ray Train's workers below a process, by default this one."""
    return [pid for pid in process_tree(root or os.getpid()) if title(pid).startswith(WORKER)]


def title(pid: int) -> bytes:
    """A process's command line, empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
