"""`ingest`: feature store to training batches as a training worker reads them, against a torch DataLoader."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymae.benchmark.harness.memory import PeakMemory
from raymae.benchmark.harness.noise_store import noise_stage
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import Pace, pace
from raymae.benchmark.speed.prepare import GROWTH, memory_row
from raymae.config import AudioConfig, Config, PretrainConfig
from raymae.pipeline.dry_run.cost import Rates
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

if TYPE_CHECKING:
    import torch

H200_CLIPS = Rates().gpu_clips
BATCH = 32
SKIPPED = 8
"""Untimed batches at the start of a run, during which the readers start."""
CHECKED = 12
"""Number of batches compared between both sides."""
AHEAD_MB = 80
"""Windows in memory and on their way: eight of 128 clips of 2.5 s."""


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """Epochs over a store of noise, and the peak memory of an epoch over a store and over one ten times as large.

    Both sides yield the same float32 batches of 32 ten-second clips in the same order. A run is timed from its ninth
    batch on; runs alternate and the median is reported. raymae reads in a thread of the training process, the
    DataLoader in processes of its own. Memory is measured on clips of 2.5 s; the base is at least four times what is
    read ahead.

    `--json` keys: `clips_per_second`, `mb_per_second` (float16 features as stored) and `loader_clips_per_second`,
    `loader_mb_per_second` (torch DataLoader over one .npy per clip); CPU milliseconds per clip over all processes
    `cpu_ms`, `loader_cpu_ms`; `mb_per_core_second`, from `cpu_ms`; `start_seconds`, from the call to the first
    batch; `clips`, `store_mb`, `workers`; for the memory `base_store_mb`, `base_peak_mb`, `peak_mb` (PSS of all
    processes).
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    clips: int = 1024
    """Ten-second clips of the store for the rates."""
    epochs: int = 6
    """Epochs of a timed run."""
    base_clips: int = 4096
    """Clips of 2.5 s in the base for memory; ten times as many are written to disk (3.4 GB at the default)."""
    runs: int = 2
    """Timed runs of each side."""
    workers: int = 1
    """Workers of the DataLoader."""

    def run(self) -> Result:
        """Measure."""
        audio = AudioConfig()
        clip_mb = megabytes(audio)
        with tempfile.TemporaryDirectory(prefix="raymae-ingest-") as folder:
            base_mb, peaks = self._peaks(Folder(folder))
            spec = make_spec(Folder(folder) / "rates", audio, self.clips, self.epochs)
            raymae, baseline = self._rates(spec, Path(folder))
        values = {
            "clips_per_second": raymae.rate,
            "mb_per_second": raymae.rate * clip_mb,
            "mb_per_core_second": clip_mb / raymae.cpu,
            "cpu_ms": 1000 * raymae.cpu,
            "loader_clips_per_second": baseline.rate,
            "loader_mb_per_second": baseline.rate * clip_mb,
            "loader_cpu_ms": 1000 * baseline.cpu,
            "start_seconds": raymae.start_seconds,
            "clips": self.clips,
            "store_mb": self.clips * clip_mb,
            "workers": self.workers,
            "base_store_mb": base_mb,
            "base_peak_mb": peaks[0],
            "peak_mb": peaks[1],
        }
        rates = [f"{side.rate:.0f} clips/s, {side.rate * clip_mb:.0f} MB/s" for side in (raymae, baseline)]
        rows = [
            Row(
                "ingest",
                f"store to batches of {BATCH}",
                rates[0],
                f"{rates[1]} (DataLoader, workers: {self.workers}, .npy)",
                raymae.rate / baseline.rate,
                1.0,
            ),
            memory_row("ingest", peaks[1], peaks[0], base_mb),
        ]
        text = (
            f"Start-up, not in the rates: {raymae.start_seconds:.1f} s to the first batch.\n"
            f"CPU per clip, all processes: {1000 * raymae.cpu:.2f} ms, DataLoader {1000 * baseline.cpu:.2f} ms; "
            f"{clip_mb / raymae.cpu:.0f} MB/s per core. An H200 that trains on {H200_CLIPS:.0f} clips/s, "
            f"{H200_CLIPS * clip_mb:.0f} MB/s, needs {H200_CLIPS * raymae.cpu:.1f} cores."
        )
        return Result("ingest", rows, values, text)

    def _peaks(self, folder: Folder) -> tuple[float, list[float]]:
        """Size of the base (MB), and peak memory (MB) of an epoch over it and over ten times as many clips."""
        audio = AudioConfig(clip_seconds=2.5)
        base_mb = self.base_clips * megabytes(audio)
        if base_mb < 4 * AHEAD_MB:
            raise ValueError(f"a base of {base_mb:.0f} MB is smaller than 4 x {AHEAD_MB} MB: increase --base-clips")
        counts = {"base": self.base_clips, "large": GROWTH * self.base_clips}
        specs = [make_spec(folder / name, audio, count, epochs=1) for name, count in counts.items()]
        peaks = []
        for spec in specs:
            with PeakMemory() as memory:
                for batch in batches(spec):
                    batch.max()
            peaks.append(memory.mb)
        (folder / "large").remove("")
        return base_mb, peaks

    def _rates(self, spec: StageSpec, folder: Path) -> tuple[Pace, Pace]:
        """Pace of raymae and of the baseline; ValueError if their batches differ."""
        import torch

        from raymae.benchmark.harness.torchaudio_baselines import EpochSampler, Stored, loader

        torch.set_num_threads(1)
        rows = order_rows(spec)
        (folder / "npy").mkdir()
        for row in range(len(spec.store)):
            np.save(folder / "npy" / f"{row:05d}.npy", spec.store.read(np.array([row]))[0][0])
        sampler = EpochSampler()
        baseline = loader(Stored(folder / "npy", len(spec.store)), sampler, BATCH, self.workers)
        sampler.indices = rows[: CHECKED * BATCH].tolist()
        for batch, other in zip(as_float(batches(spec)), baseline, strict=False):
            if not torch.equal(batch, other.float()):
                raise ValueError("ingest: the batches of both sides differ")
        sampler.indices = rows.tolist()
        feeds, loads = [], []
        for _ in range(self.runs):
            feeds.append(pace(as_float(batches(spec)), SKIPPED))
            loads.append(pace((batch.float() for batch in baseline), SKIPPED))
        return median(feeds), median(loads)


def megabytes(audio: AudioConfig) -> float:
    """Size of a stored clip, MB."""
    return 2 * audio.n_frames * audio.n_mels / 1e6


def make_spec(folder: Folder, audio: AudioConfig, clips: int, epochs: float) -> StageSpec:
    """Write a store of noise; returns the pre-training stage that reads it in steps of `BATCH` clips."""
    train = PretrainConfig(epochs=epochs, warmup_epochs=0, global_batch_size=BATCH, probe_clips=0)
    return noise_stage(folder, Config(audio=audio, pretrain=train), clips)


def order_rows(spec: StageSpec) -> NDArray[np.int64]:
    """Rows of all steps of a stage, in order."""
    order, steps = spec.order(), []
    for first in range(0, order.windows, order.slots):
        rows = [order.window_rows(first + slot) for slot in range(order.slots)]
        steps.append(np.stack(rows).reshape(order.slots, -1, order.group_size).swapaxes(0, 1).ravel())
    return np.concatenate(steps)


def batches(spec: StageSpec) -> Iterator[NDArray[np.float16]]:
    """The log-mels (B, T, F) of every step of a stage, as its only training worker reads them."""
    from raymae.training.batches.windows import read_groups

    for _, groups in read_groups(spec.store, spec.order(), rank=0, world_size=1, step=0):
        yield np.concatenate([group.values for group in groups])


def median(paces: list[Pace]) -> Pace:
    """Median of each field."""
    columns = zip(*map(astuple, paces), strict=True)
    return Pace(*map(statistics.median, columns))


def as_float(items: Iterator[NDArray[np.float16]]) -> Iterator[torch.Tensor]:
    """Convert the batches to float32 tensors, as the training loop does."""
    import torch

    return (torch.from_numpy(batch).float() for batch in items)
