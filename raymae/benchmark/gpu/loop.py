"""Figures of the training loop in this process: its rate from a store, its host's own time, and its checkpoints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from raymae.benchmark.gpu.record import Values
from raymae.benchmark.gpu.sizes import Device, Sizes
from raymae.benchmark.gpu.steps import synchronize
from raymae.benchmark.harness.noise_store import noise_stage
from raymae.storage.folder import COMMITS, Folder
from raymae.training.run_stage import build_task
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession


def measure_loop(sizes: Sizes, device: Device, wanted: list[str], compiled: bool) -> Iterator[tuple[str, Values]]:
    """Pre-training with the local decoder from a store in a temporary folder: `loop`, then `commit`."""
    before, timed, apart = sizes.loop_steps
    config = sizes.config("pretrain", "local", sizes.clips, device, compiled)
    epochs = (before + timed + apart - 0.5) * sizes.clips / sizes.store_clips
    config = replace(config, pretrain=replace(config.pretrain, epochs=epochs))
    with tempfile.TemporaryDirectory(prefix="raymae-gpu-") as folder:
        spec = noise_stage(Folder(folder), config, sizes.store_clips)
        clock = Clock(before, before + timed, device)
        session = BareSession(spec.store, spec.artifact, device)
        trainer = Trainer.start(build_task(spec), session, spec.artifact, clock.beat)
        clock.watch(trainer)
        trainer.provenance = {}  # what it says of the clips takes pandas
        trainer.figures.due = lambda: False  # type: ignore[method-assign]  # drawing takes matplotlib, and time
        trainer.run()
        if "loop" in wanted:
            yield "loop", {"clips": sizes.clips, "store_clips": sizes.store_clips, **clock.values(sizes.clips, apart)}
        if "commit" in wanted:
            yield "commit", commit_time(trainer, spec.artifact, device)


class Clock:
    """Times the steps from `first` to `last` together, and of those after them the host's own time.

    In the latter the device is waited for after every step's work, outside the host's time.
    """

    def __init__(self, first: int, last: int, device: Device) -> None:
        self.first, self.last, self.device = first, last, device
        self.at: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self.in_steps = 0.0

    def watch(self, trainer: Trainer) -> None:
        """Time the trainer's steps."""
        self.trainer, run = trainer, trainer.step.run

        def measured(*args: Any) -> None:
            begun = time.perf_counter()
            run(*args)
            if trainer.progress.step >= self.last:
                synchronize(self.device)
                self.in_steps += time.perf_counter() - begun

        trainer.step.run = measured  # type: ignore[method-assign, assignment]

    def beat(self, step: int) -> None:
        """Called after every step."""
        name = {self.first: "first", self.last: "last"}.get(step)
        if name:
            synchronize(self.device)
            self._note(name)
        elif step > self.last:
            self._note("end")

    def _note(self, name: str) -> None:
        self.at[name], self.waited[name] = time.perf_counter(), self.trainer.progress.wait_seconds

    def values(self, clips: int, apart: int) -> Values:
        """Clips per second, the share of the time waited for data, and the loop's milliseconds around a step."""
        seconds, waited = self.at["last"] - self.at["first"], self.waited["last"] - self.waited["first"]
        own = self.at["end"] - self.at["last"] - self.in_steps - (self.waited["end"] - self.waited["last"])
        return {
            "steps": self.last - self.first,
            "clips_per_second": clips * (self.last - self.first) / seconds,
            "data_wait_share": waited / seconds,
            "loop_ms": 1000 * own / apart,
        }


def commit_time(trainer: Trainer, artifact: Folder, device: Device) -> Values:
    """Seconds for which a checkpoint stops the training, and until it is written: of the second one, which finds memory
    as later ones do."""
    for _ in range(2):
        synchronize(device)
        begun = time.perf_counter()
        trainer._commit()
        stopped = time.perf_counter() - begun
        trainer.committer.wait()
        written = time.perf_counter() - begun
    name = sorted((artifact / COMMITS).names())[-1]
    size = sum((artifact / COMMITS / name).sizes().values())
    return {"stopped_seconds": stopped, "written_seconds": written, "gb": size / 1e9}
