"""`nodes`: several nodes of a cluster against one node with the same number of cores."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raymae.benchmark.harness.own_ray import own_ray
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.speed.loop import MOST_WORKERS, Loop, train_on_ray
from raymae.benchmark.speed.predict import run_job, write_untrained
from raymae.benchmark.speed.prepare import Job
from raymae.config import Config, DataConfig
from raymae.config.recipes import SMALL_MODEL, small
from raymae.datasets.synthetic.tones import write_corpus
from raymae.serving.inputs import INPUTS
from raymae.storage.folder import Folder

PARTS = ("prepare", "train", "predict")
GOAL = 0.9
OBJECT_STORE_MB = 500


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Features, pre-training and prediction on several nodes of one CPU, against one node with all the CPUs.

    All nodes run on one machine, so the difference is the overhead of the nodes: their daemons, objects copied between
    them and gradients that the workers exchange. On one node, pre-training has one worker with a thread per CPU (the
    default of a job on CPUs); on several, one worker with one thread per node. Sides alternate (one, several, several,
    one) and the mean of each is reported. Start-up is excluded, as in the parts `prepare`, `loop` and `predict`.

    `--json` keys: clips per second `prepare`, `train`, `predict` (several nodes) and `one_prepare`, `one_train`,
    `one_predict`; `ratios`, by part; `nodes`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    nodes: int = 2
    """Number of one-CPU nodes, and of CPUs of the single node."""
    parts: tuple[str, ...] = PARTS
    """Parts to measure."""
    clips: int = 1536
    """Clips whose features are computed."""
    steps: int = 32
    """Timed training steps of 64 clips."""
    labelled: int = 1024
    """Clips that are predicted."""

    def run(self) -> Result:
        """Measure."""
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"--parts {' '.join(unknown)}: the parts are {', '.join(PARTS)}")
        if not 2 <= self.nodes <= MOST_WORKERS:
            raise ValueError(f"--nodes {self.nodes} must lie between 2 and {MOST_WORKERS}")
        rates: dict[str, dict[int, list[float]]] = {part: {1: [], self.nodes: []} for part in self.parts}
        with tempfile.TemporaryDirectory(prefix="raymae-nodes-") as folder:
            sides = {part: self._side(part, Folder(folder) / part) for part in self.parts}
            for turn, nodes in enumerate((1, self.nodes, self.nodes, 1)):
                with own_ray(self.nodes // nodes, OBJECT_STORE_MB, nodes):
                    for part, measure in sides.items():
                        rates[part][nodes].append(measure(nodes, f"{turn}"))
        one, several = (
            {part: statistics.mean(found[nodes]) for part, found in rates.items()} for nodes in (1, self.nodes)
        )
        rows = [
            Row(
                "nodes",
                f"{part} on {self.nodes} nodes of 1 CPU",
                f"{several[part]:.1f} clips/s",
                f"{one[part]:.1f} clips/s (one node of {self.nodes} CPUs)",
                several[part] / one[part],
                GOAL,
            )
            for part in self.parts
        ]
        values = {**several, **{f"one_{part}": rate for part, rate in one.items()}, "nodes": self.nodes}
        return Result("nodes", rows, values | {"ratios": {row.what.split()[0]: row.ratio for row in rows}})

    def _side(self, part: str, folder: Folder) -> Callable[[int, str], float]:
        """Write the inputs of a part; returns a function from (number of nodes, run name) to clips per second."""
        return {"prepare": self._prepare, "train": self._train, "predict": self._predict}[part](folder)

    def _prepare(self, folder: Folder) -> Callable[[int, str], float]:
        config = Config(data=DataConfig(shard_mb=11))
        clips = write_corpus(new_folder(folder), self.clips, 120, config.audio.clip_seconds)

        def measure(nodes: int, name: str) -> float:
            job = Job(clips, folder / name, config, self.nodes)
            job.run()
            return job.rate

        return measure

    def _train(self, folder: Folder) -> Callable[[int, str], float]:
        loop = Loop(steps=self.steps, model=SMALL_MODEL)
        spec = loop.spec(folder)

        def measure(nodes: int, name: str) -> float:
            compute = replace(spec.config.compute, num_workers=nodes, torch_threads=self.nodes // nodes)
            config = replace(spec.config, compute=compute)
            return loop.measure(
                replace(spec, config=config, artifact=folder / name), lambda one: train_on_ray(one, folder)
            ).rate

        return measure

    def _predict(self, folder: Folder) -> Callable[[int, str], float]:
        config = small()
        classifier = write_untrained(folder / "classifier", config)
        clips = write_corpus(new_folder(folder / "recordings"), self.labelled, 64, config.audio.clip_seconds)
        files = clips.select(INPUTS.names).cast(INPUTS)

        def measure(nodes: int, name: str) -> float:
            machines = [{"CPU": float(self.nodes // nodes)}] * nodes
            return run_job(classifier, files, folder / name, config, machines).rate

        return measure


def new_folder(folder: Folder) -> Path:
    """Create a local folder; returns its path."""
    path = Path(folder.path())
    path.mkdir(parents=True)
    return path
