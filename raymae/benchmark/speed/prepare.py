"""`prepare`: audio files to a feature store with Ray Data, against one bare process and a torch DataLoader."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from raymae.audio.clip_reader import ClipReader
from raymae.benchmark.harness.memory import PeakMemory, process_tree
from raymae.benchmark.harness.own_ray import OBJECT_STORE_MB, own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import Pace, cpu_between, cpu_seconds, pace
from raymae.benchmark.speed.front_end import CHAIN_HERTZ, CHAIN_TOLERANCE, bands_below, difference, require_equal
from raymae.config import Config, DataConfig
from raymae.datasets.synthetic.tones import SAMPLE_RATE, write_corpus
from raymae.features.write import plan_shards, write_shard
from raymae.storage.folder import Folder

GROWTH = 10
"""Size of the large corpus as a multiple of the base corpus."""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """The prepare job on 24-bit 44.1 kHz WAV files, and its peak memory on a base corpus and on one ten times as large.

    The base is at least four times the size of the object store. Rates exclude the start-up of Ray and of the workers,
    until two shards per worker have arrived.

    `--json` keys: clips per second `clips_per_second` (Ray Data, all CPUs), `single_clips_per_second` (one process,
    mean of before and after the job), `several_clips_per_second` (a bare process per CPU, all at once: the limit under
    the current load), `loader_clips_per_second` (torch DataLoader with a worker per CPU); CPU milliseconds per clip
    over all processes `cpu_ms`, `single_cpu_ms`, `loader_cpu_ms`; seconds `ray_start_seconds`,
    `first_shards_seconds` (from the call until two shards per worker have arrived), `job_seconds`; `clips`, `cpus`,
    `object_store_mb`, `base_corpus_mb` (audio); `base_peak_mb`, `peak_mb` (PSS of all processes).
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    clips: int = 3840
    """Clips of the large corpus."""
    distinct: int = 120
    """Different recordings among them; the others are hard links."""
    cpus: int = 2
    """CPUs of Ray, and workers of the DataLoader."""
    baseline_clips: int = 300
    """Number of clips that the DataLoader is timed on."""
    single_clips: int = 120
    """Number of clips that the bare process is timed on, before and after the job."""

    def run(self) -> Result:
        """Measure."""
        config = Config(data=DataConfig(shard_mb=11))  # 32 clips per shard: equal shards in both corpora
        with tempfile.TemporaryDirectory(prefix="raymae-prepare-") as folder:
            clips = write_corpus(Path(folder), self.clips, self.distinct, config.audio.clip_seconds)
            base = clips.slice(0, self.clips // GROWTH)
            base_mb = sum(base["size"].to_pylist()) / 1e6
            if base_mb < 4 * OBJECT_STORE_MB:
                raise ValueError(
                    f"a base of {base_mb:.0f} MB is smaller than 4 x {OBJECT_STORE_MB} MB: increase --clips"
                )
            few = clips.slice(0, self.single_clips)
            single = [bare(few, Folder(folder) / "bare-0", config)]
            several = [together(few, Folder(folder) / "together-0", config, self.cpus)]
            with own_ray(self.cpus) as ray_seconds:
                small, large = (Job(part, Folder(f"{folder}/{len(part)}"), config, self.cpus) for part in (base, clips))
                small.run()
                large.run()
            single.append(bare(few, Folder(folder) / "bare-1", config))
            several.append(together(few, Folder(folder) / "together-1", config, self.cpus))
            baseline = self._loader(clips, Path(folder), config)
        rate, cpu = (float(np.mean(values)) for values in zip(*single, strict=True))
        values = {
            "clips_per_second": large.rate,
            "single_clips_per_second": rate,
            "several_clips_per_second": float(np.mean(several)),
            "loader_clips_per_second": baseline.rate,
            "cpu_ms": 1000 * large.cpu,
            "single_cpu_ms": 1000 * cpu,
            "loader_cpu_ms": 1000 * baseline.cpu,
            "ray_start_seconds": ray_seconds,
            "first_shards_seconds": large.first_seconds,
            "job_seconds": large.seconds,
            "clips": self.clips,
            "cpus": self.cpus,
            "object_store_mb": OBJECT_STORE_MB,
            "base_corpus_mb": base_mb,
            "base_peak_mb": small.peak_mb,
            "peak_mb": large.peak_mb,
        }
        text = (
            f"Start-up, not in the rates: Ray {ray_seconds:.1f} s, first shards after {large.first_seconds:.1f} s.\n"
            f"CPU per clip, all processes: {1000 * large.cpu:.1f} ms in the job, {1000 * cpu:.1f} ms in the bare "
            f"process, {1000 * baseline.cpu:.1f} ms in the DataLoader."
        )
        return Result("prepare", self._rows(values), values, text)

    def _rows(self, values: dict[str, float]) -> list[Row]:
        rate, single = values["clips_per_second"], values["single_clips_per_second"]
        several, loader = values["several_clips_per_second"], values["loader_clips_per_second"]
        job = f"{rate:.0f} clips/s"
        return [
            Row(
                "prepare",
                f"Ray Data on {self.cpus} CPUs, {self.clips} clips",
                job,
                f"{self.cpus} x {single:.0f} clips/s (bare process)",
                rate / (self.cpus * single),
                0.8,
            ),
            Row(
                "prepare",
                f"Ray Data on {self.cpus} CPUs",
                job,
                f"{several:.0f} clips/s ({self.cpus} bare processes at once)",
                rate / several,
                0.8,
            ),
            Row(
                "prepare",
                f"Ray Data on {self.cpus} CPUs",
                job,
                f"{loader:.0f} clips/s (DataLoader, {self.cpus} workers, torchaudio)",
                rate / loader,
                2.5,
            ),
            memory_row("prepare", values["peak_mb"], values["base_peak_mb"], values["base_corpus_mb"]),
        ]

    def _loader(self, clips: pa.Table, folder: Path, config: Config) -> Pace:
        """Pace of the DataLoader after a warm-up; ValueError if its log-mels differ from raymae's."""
        from raymae.benchmark.harness.torchaudio_baselines import EpochSampler, Featurized, loader

        target = folder / "loader"
        target.mkdir()
        paths = clips["path"].to_pylist()
        sampler = EpochSampler()
        baseline = loader(Featurized(paths, target, config.audio, SAMPLE_RATE), sampler, 8, self.cpus)
        sampler.indices = list(range(32 * self.cpus))
        list(baseline)
        low = bands_below(config.audio, CHAIN_HERTZ)
        features, _, _ = ClipReader(config.audio, 30)(paths[0])
        first = np.load(target / "00000.npy")
        largest = difference(features[:, :low].astype(np.float32), first[:, :low].astype(np.float32))
        require_equal("prepare", largest, CHAIN_TOLERANCE)
        sampler.indices = list(range(self.baseline_clips))
        return pace(baseline, skipped=2 * self.cpus)


def memory_row(part: str, peak_mb: float, base_peak_mb: float, base_mb: float) -> Row:
    """Row of the peak memory on ten times the corpus against the peak on the base."""
    what = f"peak memory (PSS, all processes), {GROWTH} x a corpus of {base_mb:.0f} MB"
    return Row(part, what, f"{peak_mb:.0f} MB", f"{base_peak_mb:.0f} MB (base)", peak_mb / base_peak_mb, 1.15, True)


def bare(clips: pa.Table, target: Folder, config: Config) -> tuple[float, float]:
    """Clips per second and CPU seconds per clip of the whole chain in this process, from file to written shard."""
    reader = ClipReader(config.audio, config.data.file_timeout)
    reader(clips["path"][0].as_py())
    started, cpu = time.perf_counter(), time.process_time()
    for plan in plan_shards(clips, config.audio, config.data.shard_mb):
        write_shard(target, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
    seconds = time.perf_counter() - started
    return len(clips) / seconds, (time.process_time() - cpu) / len(clips)


def together(clips: pa.Table, target: Folder, config: Config, processes: int) -> float:
    """Clips per second of several bare processes at once, each on all of `clips`, without their start-up."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(bare, [clips.slice(0, 16)] * processes, [target / "warm"] * processes, [config] * processes))
        targets = [target / str(number) for number in range(processes)]
        started = time.perf_counter()
        list(pool.map(bare, [clips] * processes, targets, [config] * processes))
        return processes * len(clips) / (time.perf_counter() - started)


@dataclass
class Job:
    """One run of the prepare job, timed from the arrival of two shards per worker."""

    clips: pa.Table
    storage: Folder
    config: Config
    cpus: int
    peak_mb: float = 0.0
    seconds: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    used: dict[int, float] = field(default_factory=dict)
    cpu: float = 0.0
    """CPU seconds per clip of all processes."""

    def run(self) -> None:
        """Run the job."""
        from raymae.cluster.prepare import prepare

        self.started = time.perf_counter()
        with PeakMemory(interval=2.0) as memory:
            compute = replace(self.config.compute, data_workers=self.cpus)
            config = replace(self.config, compute=compute)
            prepare(self.clips, self.storage / "artifact", self.storage / "shards", config, self._arrived)
        self.peak_mb = memory.mb
        self.seconds = time.perf_counter() - self.started

    def _arrived(self, clips: int) -> None:
        if not clips:
            return
        self.arrivals.append((time.perf_counter() - self.started, clips))
        if len(self.arrivals) == self.skipped:
            self.used = cpu_seconds(process_tree(os.getpid()))
        elif sum(count for _, count in self.arrivals) == len(self.clips):
            used = cpu_between(self.used, cpu_seconds(process_tree(os.getpid())))
            self.cpu = used / sum(count for _, count in self.arrivals[self.skipped :])

    @property
    def skipped(self) -> int:
        """Number of untimed shards, during which workers may still be starting."""
        return 2 * self.cpus

    @property
    def first_seconds(self) -> float:
        """Seconds until the untimed shards have arrived."""
        return self.arrivals[self.skipped - 1][0]

    @property
    def rate(self) -> float:
        """Clips per second after the untimed shards."""
        counted = self.arrivals[self.skipped :]
        return sum(count for _, count in counted) / (counted[-1][0] - self.first_seconds)
