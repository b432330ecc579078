"""`sweep-driver`: what the driver of a sweep does for each trial, without the trials."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from raymae.benchmark.harness.result import Result, Row
from raymae.config import SweepConfig
from raymae.config.recipes import synthetic
from raymae.storage.folder import open_storage
from raymae.sweep.run import Sweep
from raymae.tracking.reporter import begin

MOST_MS = 50.0
REPORTS = 5
"""Scores that each trial reports, before its last report."""


@dataclass(frozen=True, kw_only=True)
class SweepDriver:
    """Let a sweep's recorder take note of trials that compute nothing: each starts, reports five scores and ends. What
    is measured is the sweep's own part: records, MLflow, TensorBoard, the page while it runs; Ray Tune's own part isn't
    in it.

    `--json` keys: `trials`, `mean_ms`, `last_ms` (a trial, of the last tenth), `longest_ms`, `end_seconds` (tables,
    comparisons and the last page).
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    trials: int = 1000
    """Number of trials."""

    def run(self) -> Result:
        """Measure."""
        from raymae.sweep.search.graph_search import as_text, values_of
        from raymae.sweep.trials.recorder import Recorder

        if self.trials < 10:
            raise ValueError(f"--trials {self.trials} must be 10 or more")
        space = SweepConfig(space=("finetune.lr=log:1e-5..1e-1",), search="random", trials=self.trials, stopping="none")
        with tempfile.TemporaryDirectory(prefix="raymae-sweep-") as folder:
            config = replace(synthetic(), recipe="synthetic", storage=folder, sweep=space)
            sweep = Sweep(config, open_storage(folder))
            sweep.reporter.start(begin("", f"sweep-{sweep.key}", "sweep", {}, {}))
            sweep.begin_records()
            recorder = Recorder(
                sweep.folder,
                lambda found: values_of(found, sweep.axes),
                sweep.reporter,
                sweep.key,
                known=0,
                total=self.trials,
                tensorboard=sweep.folder.path("tensorboard"),
                after_record=sweep.after_record,
            )
            rng, seconds = np.random.default_rng(0), []
            for number, point in enumerate(sweep.points or ()):
                trial: Any = SimpleNamespace(trial_id=str(number), config=as_text(point.values, sweep.axes))
                started = time.perf_counter()
                run_trial(recorder, trial, rng.random(REPORTS + 1))
                seconds.append(time.perf_counter() - started)
            ended = time.perf_counter()
            sweep.conclude()
            end = time.perf_counter() - ended
            sweep.reporter.close("FINISHED")
        milliseconds = 1000 * np.array(seconds)
        last = float(milliseconds[-len(milliseconds) // 10 :].mean())
        row = Row(
            "sweep-driver",
            f"driver, {self.trials} null trials, one of the last",
            f"{last:.1f} ms",
            "50 ms",
            last / MOST_MS,
            1.0,
            True,
        )
        values = {
            "trials": self.trials,
            "mean_ms": float(milliseconds.mean()),
            "last_ms": last,
            "longest_ms": float(milliseconds.max()),
            "end_seconds": end,
        }
        return Result("sweep-driver", [row], values)


def run_trial(recorder: Any, trial: Any, scores: Any) -> None:
    """Tell the recorder of a trial with these scores, the last one at its end."""
    recorder.on_trial_start(0, [], trial)
    for place, score in enumerate(scores):
        event = {"step": place, "time": time.time(), "metrics": {"loss": 1 - score, "val/macro_accuracy": score}}
        report = {"score": float(score), "trial_step": place, "events": [event], "stages": {}}
        ends = place == len(scores) - 1
        report |= {"status": "finished", "flops": 1e12} if ends else {"percent": 100 * (place + 1) / len(scores)}
        recorder.on_trial_result(0, [], trial, report)
    recorder.on_trial_complete(0, [], trial)
