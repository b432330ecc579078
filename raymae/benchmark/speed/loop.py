"""`loop`: training with Ray Train, against the same loop on the same batches in a bare process."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.harness.noise_store import noise_stage
from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import cpu_beside, cpu_between, cpu_seconds
from raymae.config import ComputeConfig, ModelConfig
from raymae.config.recipes import SMALL_MODEL, small
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

MOST_WORKERS = 8
"""Mixing groups of a step of 64 clips: the most workers that can share it."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Pre-training of the recipe `small` on noise, one epoch per run: its model, crops, batches of 64, augmentations.

    Both sides run the same stage with the same loop and the same threads, on one worker; they alternate (bare, Ray,
    Ray, bare, …). Some steps before the timed ones cover the start-up, and some after them make sure that windows are
    still being read during all timed steps. The median over the runs is reported. The benchmark checks that both sides
    trained on the same clips at the same steps and ended with the same weights.

    `--json` keys: `clips_per_second` and `bare_clips_per_second`; CPU milliseconds per clip over all processes of a
    side, `cpu_ms` and `bare_cpu_ms`, and `cpu_ratio`, bare over Ray: the ratio to expect when all cores compute,
    less affected by other processes; `cores_beside`, what the driver and Ray use beside the training worker;
    `data_wait_share` and `bare_data_wait_share`, the share of a step spent waiting for its batch; `start_seconds`
    and `bare_start_seconds`, from the call to the end of the first step (without the start of Ray: `ray_seconds`);
    `threads`, `steps`, `runs`, `cpus`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    steps: int = 32
    """Timed steps of a run."""
    before: int = 8
    """Steps before them, 1 or more."""
    after: int = 20
    """Steps after them, as many as are read ahead."""
    runs: int = 2
    """Runs of each side."""
    threads: int | None = None
    """Threads of torch on both sides; the default is the number of CPUs, as for a job."""
    cpus: int = 2
    """CPUs of Ray."""
    model: ModelConfig = SMALL_MODEL
    """Model sizes."""

    def run(self) -> Result:
        """Measure."""
        if min(self.steps, self.before, self.after, self.runs) < 1:
            raise ValueError("--steps, --before, --after and --runs must be 1 or more")
        with tempfile.TemporaryDirectory(prefix="raymae-loop-") as folder:
            root = Folder(folder)
            spec = self.spec(root)
            raymae, bare, ray_seconds = self._take_turns(spec, root)
        wall, cpu = raymae.rate / bare.rate, bare.cpu / raymae.cpu
        values = {
            "clips_per_second": raymae.rate,
            "bare_clips_per_second": bare.rate,
            "cpu_ms": 1000 * raymae.cpu,
            "bare_cpu_ms": 1000 * bare.cpu,
            "cpu_ratio": cpu,
            "data_wait_share": raymae.data_wait_share,
            "bare_data_wait_share": bare.data_wait_share,
            "start_seconds": raymae.start_seconds,
            "bare_start_seconds": bare.start_seconds,
            "cores_beside": raymae.beside,
            "ray_seconds": ray_seconds,
            "threads": spec.config.compute.torch_threads,
            "steps": self.steps,
            "runs": self.runs,
            "cpus": self.cpus,
        }
        what = f"training loop on {spec.config.compute.torch_threads} threads, steps of {spec.train.global_batch_size}"
        rates = f"{raymae.rate:.1f} clips/s", f"{bare.rate:.1f} clips/s (bare process)"
        text = (
            f"Waiting for data: {raymae.data_wait_share:.2%} of a step, bare {bare.data_wait_share:.2%}.\n"
            f"CPU per clip, all processes: {1000 * raymae.cpu:.2f} ms, bare {1000 * bare.cpu:.2f} ms; ratio when "
            f"all cores compute: {cpu:.3f}.\n"
            f"Start-up, not in the rates: {raymae.start_seconds:.1f} s to the end of the first step, bare "
            f"{bare.start_seconds:.1f} s; Ray itself {ray_seconds:.1f} s."
        )
        beside = "all other processes beside the training worker", f"{raymae.beside:.2f} cores", "1 core"
        rows = [Row("loop", what, *rates, wall, 0.97), Row("loop", *beside, raymae.beside, 0.2, at_most=True)]
        return Result("loop", rows, values, text)

    def spec(self, root: Folder) -> StageSpec:
        """Write a store of noise with a batch of clips per step; returns the stage that trains on it for one epoch."""
        config, steps = small(), self.before + self.steps + self.after
        train = replace(config.pretrain, epochs=1, warmup_epochs=0, report_steps=1, probe_clips=0)
        compute = ComputeConfig(num_workers=1, use_gpu=False, torch_threads=self.threads or self.cpus)
        any_depth = replace(config.finetune, layer=None)  # only pre-training runs
        config = replace(config, model=self.model, pretrain=train, finetune=any_depth, compute=compute)
        return replace(noise_stage(root, config, steps * train.global_batch_size), name="loop")

    def _take_turns(self, spec: StageSpec, root: Folder) -> tuple[Run, Run, float]:
        """Median runs of both sides (Ray, bare), and the start-up time of Ray, seconds."""
        runs: dict[str, list[Run]] = {"ray": [], "bare": []}
        starts = []
        for turn in range(self.runs):
            specs = {side: replace(spec, artifact=root / f"{side}-{turn}") for side in runs}

            def bare(spec: StageSpec = specs["bare"]) -> None:
                runs["bare"].append(self.measure(spec, train_bare))

            if turn % 2 == 0:
                bare()
            with own_ray(self.cpus, object_store_mb=1000) as seconds:
                starts.append(seconds)
                runs["ray"].append(self.measure(specs["ray"], lambda it: train_on_ray(it, root)))
            if turn % 2:
                bare()
            check_equal(specs["ray"].artifact, specs["bare"].artifact)
        return median(runs["ray"]), median(runs["bare"]), statistics.median(starts)

    def measure(self, spec: StageSpec, train: Callable[[StageSpec], None]) -> Run:
        """Train the stage, which reports every step; measures the timed steps."""
        first, last = self.before, self.before + self.steps
        begun = time.time()
        with cpu_of_steps(spec, first, last) as used:
            train(spec)
        events = read_events(spec.artifact)
        seconds = events[last - 1]["time"] - events[first - 1]["time"]
        clips = self.steps * spec.train.global_batch_size
        return Run(
            rate=clips / seconds,
            beside=cpu_beside(*used) / seconds,
            cpu=cpu_between(*used) / clips,
            data_wait_share=statistics.mean(event["metrics"]["data_wait_share"] for event in events[first:last]),
            start_seconds=events[0]["time"] - begun,
        )


@dataclass(frozen=True)
class Run:
    """Measurements of one run."""

    rate: float
    """Clips per second."""
    beside: float
    """Cores that all processes but the busiest, the training worker, use."""
    cpu: float
    """CPU seconds per clip during the timed steps, of this process and its descendants."""
    data_wait_share: float
    start_seconds: float
    """From the call to the end of the first step."""


def median(runs: list[Run]) -> Run:
    """Median of each field."""
    return Run(*map(statistics.median, zip(*map(astuple, runs), strict=True)))


@contextmanager
def cpu_of_steps(spec: StageSpec, first: int, last: int) -> Iterator[list[dict[int, float]]]:
    """Record the CPU seconds of every process at the end of two steps (or at its own end), while the block trains."""
    used: list[dict[int, float]] = []
    stop = threading.Event()

    def watch() -> None:
        now: dict[int, float] = {}
        for step in (first, last):
            turn = 0
            while not spec.artifact.exists(f"events/{step:09d}.json"):
                if stop.wait(0.01):
                    return
                turn += 1
                if turn % 100 == 0:  # keeps the last value of readers that end before the step
                    now |= cpu_seconds(process_tree(os.getpid()))
            now |= cpu_seconds(process_tree(os.getpid()))
            used.append(dict(now))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield used
    except BaseException:
        stop.set()  # the awaited step won't be reported
        raise
    finally:
        thread.join()


def train_on_ray(spec: StageSpec, root: Folder) -> None:
    """Train with Ray, as a job does."""
    from raymae.cluster import train

    train.train([spec], root)


def train_bare(spec: StageSpec) -> None:
    """Train in a new Python process; RuntimeError if it fails."""
    process = multiprocessing.get_context("spawn").Process(target=run_bare, args=(spec,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the bare process ended with status {process.exitcode}")


def run_bare(spec: StageSpec) -> None:
    """Run the stage without Ray."""
    import torch

    from raymae.training.run_stage import run_stage
    from raymae.training.worker import BareSession

    torch.set_num_threads(spec.config.compute.torch_threads or 1)
    run_stage(spec, BareSession(spec.store, spec.artifact))


def check_equal(one: Folder, other: Folder) -> None:
    """Raise ValueError if two runs trained on different clips or ended with different weights."""
    if one.result()["trail"] != other.result()["trail"]:
        raise ValueError("loop: both sides trained on the clips in different orders")
    if one.read_bytes("model.safetensors") != other.read_bytes("model.safetensors"):
        raise ValueError("loop: both sides ended with different weights")
