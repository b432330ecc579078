"""`predict`: audio files to labels with the actors of jobs/predict.py, against forward passes and a plain loop."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import cpu_between, cpu_seconds, interleave
from raymae.benchmark.speed.front_end import require_equal
from raymae.config import Config
from raymae.config.recipes import RECIPES
from raymae.datasets.synthetic.tones import write_corpus
from raymae.serving.inputs import INPUTS
from raymae.storage.folder import Folder

TOLERANCE = 1e-5
"""Largest accepted difference of a probability between the job and the plain loop."""
CLASSES = 10
FEW = 64
"""Number of clips that the bare sides are timed on."""
Arrival = tuple[float, int, dict[int, float]]
"""Time at which a part finished, its number of clips, and the CPU seconds used by each process until then."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """The actors of the job on 24-bit 44.1 kHz WAV files, with a classifier of random weights, on CPUs.

    The floor is the work that can't be avoided: decoding, log-mel and forward passes of 16 clips in one thread. On CPUs
    they share the cores, so the rate of forward passes alone can't be reached. The plain loop calls soundfile.read and
    the Predictor clip by clip, in one process per CPU, all at once. The rate of the job excludes its start, until two
    parts per actor have finished.

    `--json` keys: CPU milliseconds per clip `decode_ms` (with log-mel), `forward_ms`, `floor_ms`, `plain_ms` and
    `cpu_ms` (the job, all processes); clips per second `clips_per_second` (the job), `forward_clips_per_second`
    (features in memory, a thread per CPU), `floor_clips_per_second`, `plain_clips_per_second` (all processes at once,
    mean of before and after the job); `ray_start_seconds`, `first_parts_seconds`, `clips`, `cpus`, `recipe`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    recipe: str = "small"
    """Recipe of the front end and the model."""
    clips: int = 2048
    """Clips that the job predicts."""
    distinct: int = 64
    """Different recordings among them; the others are hard links."""
    cpus: int = 2
    """CPUs of Ray, and processes of the plain loop."""
    repetitions: int = 5
    """Timed calls of each bare side; the median is reported."""

    def run(self) -> Result:
        """Measure."""
        config = RECIPES[self.recipe]()
        with tempfile.TemporaryDirectory(prefix="raymae-predict-") as folder:
            classifier = write_untrained(Folder(f"{folder}/classifier"), config)
            (Path(folder) / "recordings").mkdir()
            clips = write_corpus(Path(folder) / "recordings", self.clips, self.distinct, config.audio.clip_seconds)
            files = clips.select(INPUTS.names).cast(INPUTS)
            bare = bare_sides(classifier, files["path"][:FEW].to_pylist(), self.repetitions)
            plain = [plain_at_once(classifier, files["path"][:FEW].to_pylist(), self.cpus)]
            with own_ray(self.cpus) as ray_seconds:
                job = run_job(classifier, files, Folder(f"{folder}/labels"), config, [{"CPU": self.cpus}])
            plain.append(plain_at_once(classifier, files["path"][:FEW].to_pylist(), self.cpus))
            check(classifier, Folder(f"{folder}/labels"), files)
        floor = bare["decode"] + bare["forward"]
        values = {
            **{f"{name}_ms": 1000 * seconds for name, seconds in (bare | {"floor": floor, "cpu": job.cpu}).items()},
            "clips_per_second": job.rate,
            "forward_clips_per_second": self.cpus / bare["forward"],
            "floor_clips_per_second": self.cpus / floor,
            "plain_clips_per_second": float(np.mean(plain)),
            "ray_start_seconds": ray_seconds,
            "first_parts_seconds": job.first_seconds,
            "clips": self.clips,
            "cpus": self.cpus,
            "recipe": self.recipe,
        }
        share = bare["forward"] / self.cpus
        text = (
            f"CPU per clip: decode + log-mel {1000 * bare['decode']:.1f} ms, forward passes "
            f"{1000 * bare['forward']:.1f} ms; the plain loop {1000 * bare['plain']:.1f} ms; the job, all processes, "
            f"{1000 * job.cpu:.1f} ms.\n"
            f"Forward passes alone, features in memory: {1 / share:.0f} clips/s; the floor reaches "
            f"{bare['forward'] / floor:.2f} of that, the job {job.rate * share:.2f}.\n"
            f"Start-up, not in the rates: Ray {ray_seconds:.1f} s, first parts after {job.first_seconds:.1f} s."
        )
        return Result("predict", self._rows(values), values, text)

    def _rows(self, values: dict[str, Any]) -> list[Row]:
        what, job = f"jobs/predict.py on {self.cpus} CPUs, {self.clips} clips", values["clips_per_second"]
        floor, plain = values["floor_clips_per_second"], values["plain_clips_per_second"]
        rate = f"{job:.1f} clips/s"
        return [
            Row("predict", what, rate, f"{floor:.1f} clips/s (decode + log-mel + forward)", job / floor, 0.85),
            Row(
                "predict",
                "CPU per clip, floor / job",
                f"{values['cpu_ms']:.1f} ms",
                f"{values['floor_ms']:.1f} ms (decode + log-mel + forward)",
                values["floor_ms"] / values["cpu_ms"],
                0.85,
            ),
            Row("predict", what, rate, f"{plain:.1f} clips/s ({self.cpus} plain loops at once)", job / plain, 1.0),
        ]


def write_untrained(folder: Folder, config: Config) -> Folder:
    """Write a classifier with random weights; returns its folder."""
    from raymae.inference.classifier import write_classifier
    from raymae.models import build_classifier

    model = build_classifier(config.audio, config.model, config.finetune, CLASSES)
    names = [f"class {number}" for number in range(CLASSES)]
    settings = {"audio": config.audio, "model_config": config.model, "finetune": config.finetune}
    write_classifier(folder, model, class_names=names, **settings)  # type: ignore[arg-type]
    return folder


def plain_loop(predictor: Any, paths: Sequence[str]) -> list[dict[str, float]]:
    """Predict clip by clip with soundfile and the Predictor."""
    found = []
    for path in paths:
        waveform, sample_rate = soundfile.read(path, dtype="float32")
        found.append(predictor((waveform, sample_rate)))
    return found


def bare_sides(classifier: Folder, paths: Sequence[str], repetitions: int) -> dict[str, float]:
    """CPU seconds per clip of decoding and log-mel, of forward passes and of the plain loop, in one thread."""
    from raymae.audio.decode import load
    from raymae.audio.logmel import fit_length
    from raymae.inference.predictor import Predictor
    from raymae.inference.windowed import BATCH

    predictor = Predictor(classifier, threads=1)
    audio = predictor.classifier.audio

    def decode() -> list[tuple[Any, int]]:
        waveforms = (load(path, audio.sample_rate) for path in paths)
        return [fit_length(predictor.log_mel(waveform), audio.n_frames, audio.silence) for waveform in waveforms]

    features = decode()
    log_mel, frames = np.stack([one for one, _ in features]), np.array([count for _, count in features], np.int32)

    def forward() -> None:
        for start in range(0, len(paths), BATCH):
            predictor.probabilities(log_mel[start : start + BATCH], frames[start : start + BATCH])

    sides: dict[str, Callable[[], object]] = {"decode": decode, "forward": forward}
    sides["plain"] = lambda: plain_loop(predictor, paths)
    return {name: seconds / len(paths) for name, seconds in interleave(sides, repetitions).items()}


def plain_at_once(classifier: Folder, paths: Sequence[str], processes: int) -> float:
    """Clips per second of several plain loops at once, without their start-up."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_plain, [classifier] * processes, [paths[:2]] * processes))
        started = time.perf_counter()
        list(pool.map(_plain, [classifier] * processes, [paths] * processes))
        return processes * len(paths) / (time.perf_counter() - started)


_predictors: dict[str, Any] = {}


def _plain(classifier: Folder, paths: Sequence[str]) -> int:
    from raymae.inference.predictor import Predictor

    if classifier.url not in _predictors:
        _predictors[classifier.url] = Predictor(classifier, threads=1)
    return len(plain_loop(_predictors[classifier.url], paths))


@dataclass(frozen=True)
class JobPace:
    """Throughput of the job after start-up."""

    rate: float
    """Clips per second."""
    cpu: float
    """CPU seconds per clip of all processes."""
    first_seconds: float
    """From the call until two parts per actor have finished."""


def run_job(
    classifier: Folder, files: pa.Table, folder: Folder, config: Config, nodes: Sequence[dict[str, float]]
) -> JobPace:
    """Predict the files as jobs/predict.py does, on nodes with these resources; ValueError if the parts are too few."""
    from raymae.cluster.parts import write_parts
    from raymae.cluster.resources.pools import label_pool
    from raymae.serving.predict import LabelFiles, plan_parts

    parts = plan_parts(files)
    compute = replace(config.compute, torch_threads=None, data_workers=None)
    pool, threads = label_pool(compute, nodes, len(parts))
    skipped = 2 * pool["compute"].max_size
    if len(parts) < 2 * skipped:
        raise ValueError(f"{len(parts)} parts are too few to time: increase --clips")
    started = time.perf_counter()
    arrived: list[Arrival] = []

    def progress(clips: int) -> None:
        arrived.append((time.perf_counter(), clips, cpu_seconds(process_tree(os.getpid()))))

    write_parts(parts, folder, LabelFiles, (classifier, "file", threads), pool, progress)
    return pace_of(arrived, skipped, started)


def pace_of(arrived: Sequence[Arrival], skipped: int, started: float) -> JobPace:
    """Throughput of the parts after the first `skipped`."""
    (first, _, before), (last, _, after) = arrived[skipped - 1], arrived[-1]
    clips = sum(count for _, count, _ in arrived[skipped:])
    return JobPace(clips / (last - first), cpu_between(before, after) / clips, first - started)


def check(classifier: Folder, folder: Folder, files: pa.Table) -> None:
    """Raise ValueError if the probabilities of the job and the plain loop differ."""
    from raymae.datasets.labels import probability_columns
    from raymae.inference.labeller import schema
    from raymae.inference.predictor import Predictor
    from raymae.serving.predict import Labels, plan_parts

    predictor = Predictor(classifier, threads=1)
    table = next(Labels(folder, plan_parts(files), schema(predictor.class_names, "file")).tables())
    plain = plain_loop(predictor, table["path"].to_pylist()[:4])
    columns = dict(zip(predictor.class_names, probability_columns(predictor.class_names), strict=True))
    differences = [abs(table[columns[name]][row].as_py() - one[name]) for row, one in enumerate(plain) for name in one]
    require_equal("predict", max(differences), TOLERANCE)
