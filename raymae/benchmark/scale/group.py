"""`group`: many training workers on one machine, over thousands of tiny windows."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from raymae.benchmark.harness.memory import pss_mb
from raymae.benchmark.harness.noise_store import noise_audio, noise_stage
from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import cpu_between
from raymae.benchmark.scale.recovery import training_workers
from raymae.benchmark.speed.loop import cpu_of_steps, train_on_ray
from raymae.config import AugmentConfig, ComputeConfig, ModelConfig
from raymae.config.recipes import synthetic
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

CLIPS = 128
"""Clips of a window; a worker reads one for every step."""
FRAMES, BANDS = 32, 16
"""Shape of a clip: two patches."""
MODEL = ModelConfig(
    embed_dim=16,
    depth=1,
    num_heads=1,
    decoder="light",
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=1,
    mask_ratio=0.5,
)
LONGEST_PAUSE, MOST_MS, MOST_GROWTH = 0.5, 0.3, 1.05
WHILE_MEASURED = 100
"""Steps after the first measurement of memory in which pauses don't count: reading how a process's memory is shared
stops it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pre-train a model of one block on clips of two patches with many workers of a TorchTrainer, so that what is
    measured is reading, coordination and Ray.

    All workers share this machine's cores, and so a step takes as much longer as there are workers a core. A pause is
    what a step takes beyond the median step. Processes other than the training workers (driver, Ray Train's controller,
    Ray's daemons) are counted together. Memory is the largest of a training worker, a quarter of the way and at the
    end. The first twentieth of the steps isn't counted.

    `--json` keys: `windows`, `workers`, `windows_per_second`, `longest_pause`, `beside_ms` (CPU milliseconds of the
    other processes per window), `quarter_mb`, `end_mb`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    workers: int = 8
    """Training workers."""
    windows: int = 20_000
    """Windows of 128 clips that they read in all."""
    cpus: int = 2
    """CPUs of Ray."""

    def run(self) -> Result:
        """Measure."""
        if self.workers < 1 or self.windows < 40 * self.workers:
            raise ValueError(f"--windows {self.windows} must be 40 or more for each of --workers {self.workers}")
        steps = self.windows // self.workers
        first, last = steps // 20, steps - 1
        with tempfile.TemporaryDirectory(prefix="raymae-group-") as folder:
            spec = self.spec(Folder(folder), steps)
            with (
                own_ray(self.cpus, object_store_mb=200),
                memory_at(spec, (steps // 4, last)) as memory,
                cpu_of_steps(spec, first, last) as used,
                pids_of_workers(spec, first) as workers,
            ):
                train_on_ray(spec, Folder(folder))
            times = [event["time"] for event in read_events(spec.artifact)][first - 1 : last]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        calm = seconds[: steps // 4 - first] + seconds[steps // 4 - first + WHILE_MEASURED :]
        pause = max(calm) - statistics.median(seconds)
        windows = len(seconds) * self.workers
        others = [{pid: value for pid, value in one.items() if pid not in workers} for one in used]
        beside = 1000 * cpu_between(*others) / windows
        what = f"{self.workers} workers of a TorchTrainer, {windows / sum(seconds):.0f} windows/s"
        quarter, end = memory
        rows = [
            limited(f"{what}: longest pause", pause, LONGEST_PAUSE, "s"),
            limited(f"{what}: all others' CPU a window", beside, MOST_MS, "ms"),
            Row(
                "group",
                f"{what}: memory at the end",
                f"{end:.0f} MB",
                f"{quarter:.0f} MB (after a quarter)",
                end / quarter,
                MOST_GROWTH,
                at_most=True,
            ),
        ]
        values = {
            "windows": self.windows,
            "workers": self.workers,
            "windows_per_second": windows / sum(seconds),
            "longest_pause": pause,
            "beside_ms": beside,
            "quarter_mb": quarter,
            "end_mb": end,
        }
        return Result("group", rows, values)

    def spec(self, root: Folder, steps: int) -> StageSpec:
        """Write a store of noise; returns the stage that trains on it for so many steps."""
        config, batch = synthetic(), CLIPS * self.workers
        clips = 8 * batch
        train = replace(
            config.pretrain,
            epochs=steps / 8,
            warmup_epochs=0,
            global_batch_size=batch,
            micro_batch_size=CLIPS,
            mixing_group=CLIPS,
            report_steps=1,
            probe_clips=0,
            precision="fp32",
            augment=AugmentConfig(),
        )
        share = 0.8 * self.cpus / self.workers
        compute = ComputeConfig(num_workers=self.workers, use_gpu=False, torch_threads=1, cpus_per_worker=share)
        audio = noise_audio(FRAMES, BANDS)
        config = replace(config, audio=audio, model=MODEL, pretrain=train, compute=compute)
        return replace(noise_stage(root, config, clips), name="group")


def limited(what: str, value: float, limit: float, unit: str) -> Row:
    """A row of a value with a limit."""
    return Row("group", what, f"{value:.2f} {unit}", f"{limit:g} {unit} (limit)", value / limit, 1.0, at_most=True)


@contextmanager
def memory_at(spec: StageSpec, steps: tuple[int, ...]) -> Iterator[list[float]]:
    """Record the largest PSS of a training worker, in MB, at the end of some steps, while the block trains."""
    found: list[float] = []
    with at_steps(spec, steps, lambda: found.append(max(map(pss_mb, training_workers())))):
        yield found


@contextmanager
def pids_of_workers(spec: StageSpec, step: int) -> Iterator[set[int]]:
    """Record the training workers' processes at the end of a step, while the block trains."""
    found: set[int] = set()
    with at_steps(spec, (step,), lambda: found.update(training_workers())):
        yield found


@contextmanager
def at_steps(spec: StageSpec, steps: tuple[int, ...], act: Callable[[], object]) -> Iterator[None]:
    """Call a function at the end of some steps, while the block trains."""
    stop = threading.Event()

    def watch() -> None:
        for step in steps:
            while not spec.artifact.exists(f"events/{step:09d}.json"):
                if stop.wait(0.02):
                    return
            act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
