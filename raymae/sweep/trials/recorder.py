"""Callback that writes the trials' records, logs them to MLflow and TensorBoard, and prints a line for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from raymae.config import to_text
from raymae.storage.folder import Folder
from raymae.sweep.points import Point
from raymae.sweep.results import Record, number, reused, write_record
from raymae.sweep.search.graph_search import AGAIN, KEY, STAGE
from raymae.sweep.search.population import Segment
from raymae.sweep.search.population_search import SEGMENT
from raymae.sweep.search.stopping import SCORE
from raymae.sweep.space import Values
from raymae.tracking.outbox import Entry
from raymae.tracking.reporter import Reporter, begin, finish, log_entry

LOG_SECONDS = 30.0
"""Least time between two entries of a trial's metrics for MLflow, each a file. TensorBoard gets them at once."""


class Recorder(Callback):
    """Tune's callback on the driver.

    Args:
        folder: the sweep's folder.
        values_of: maps Tune's configuration of a trial to its values by path.
        reporter: logs to MLflow.
        key: the sweep's key.
        known: number of trials that an earlier start recorded.
        total: number of trials of the sweep, the known ones included.
        tensorboard: local folder for TensorBoard, or None.
        after_record: called after each record with its name, itself and the number of trials that have ended.
    """

    def __init__(
        self,
        folder: Folder,
        values_of: Callable[[Mapping[str, Any]], Values],
        reporter: Reporter,
        key: str,
        *,
        known: int,
        total: int,
        tensorboard: str | None,
        after_record: Callable[[str, Record, int], None] = lambda name, record, done: None,
    ) -> None:
        self.folder, self.values_of, self.reporter = folder, values_of, reporter
        self.key, self.tensorboard, self.after_record = key, tensorboard, after_record
        self.done, self.total = known, total
        self._started: dict[str, float] = {}
        self._history: dict[str, list[dict[str, float]]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._begun: set[str] = set()
        self._unlogged: dict[str, list[dict[str, Any]]] = {}
        self._logged_at: dict[str, float] = {}
        self._writers: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles callbacks to restore a sweep; a sweep resumes from its records, and the reporter has threads."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Note that a trial starts (or starts again after its process died)."""
        self._started.setdefault(trial.trial_id, time.time())
        if STAGE not in trial.config:
            self._begin(trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep and log a trial's report."""
        self._last[trial.trial_id] = result
        if STAGE in trial.config:
            return
        if "percent" in result and "status" not in result:
            point = {"percent": result["percent"], "step": result["trial_step"], "score": result["score"]}
            history = self._history.setdefault(trial.trial_id, [])
            if not history or point["percent"] > history[-1]["percent"]:  # else reported again, when it resumed
                history.append(point)
        self._log_events(trial, result.get("events", []))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record a trial that ended by itself or was stopped."""
        last = self._last.get(trial.trial_id, {})
        if last.get(AGAIN):
            print(f"{self._name(trial)}: failed: {last['error']}; it is tried once more", flush=True)
            return
        if STAGE in trial.config:
            self._tell_stage(trial, last.get("error", ""))
            return
        if last.get("status") == "interrupted":  # at the deadline: the next start resumes it
            self._close(trial, None, "KILLED")
            return
        self._record(trial, last.get("status", "stopped"), last.get("error", ""))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record a trial whose process died too often."""
        lines = str(getattr(trial, "error_msg", "") or trial.get_error() or "its process died").strip().splitlines()
        if STAGE in trial.config:
            self._tell_stage(trial, lines[-1])
        else:
            self._record(trial, "failed", lines[-1])

    def _name(self, trial: TuneTrial) -> str:
        """A point's values, or a shared stage's name and key."""
        if STAGE in trial.config:
            return f"shared {trial.config[STAGE]} {trial.config[KEY]}"
        return Point(self.values_of(trial.config)).label

    def _tell_stage(self, trial: TuneTrial, error: str) -> None:
        """Print that a stage that several trials share has ended."""
        seconds = time.time() - self._started.get(trial.trial_id, time.time())
        how = f"failed after {seconds:.0f} s: {error}" if error else f"{seconds:.0f} s"
        print(f"{self._name(trial)}: {how}", flush=True)

    def _record(self, trial: TuneTrial, status: Any, error: str) -> None:
        last, history = self._last.get(trial.trial_id, {}), self._history.get(trial.trial_id, [])
        score = number(last.get("score"))
        if score is None and status == "stopped" and history:
            score = history[-1]["score"]
        values = self.values_of(trial.config)
        record = Record(
            key=self._key(trial),
            changes=values,
            status=status,
            score=score,
            metrics={name: float(value) for name, value in last.get("metrics", {}).items()},
            history=history,
            stages=last.get("stages", {}),
            error=error,
            seconds=time.time() - self._started.get(trial.trial_id, time.time()),
            flops=last.get("flops"),
            lineage=Segment(**trial.config[SEGMENT]).lineage() if SEGMENT in trial.config else {},
        )
        name = write_record(self.folder, record)
        self._close(
            trial, record.score, "FAILED" if status == "failed" else "KILLED" if status == "stopped" else "FINISHED"
        )
        self.done += 1
        print(f"trial {self.done} of {self.total}: {line(record)}", flush=True)
        self.after_record(name, record, self.done)
        for kept in (self._last, self._history, self._unlogged, self._logged_at):
            kept.pop(trial.trial_id, None)

    # MLflow and TensorBoard ---------------------------------------------------------------------------------------

    def _key(self, trial: TuneTrial) -> str:
        """The key of the trial's record, and the name of its run in the outbox."""
        segment = trial.config.get(SEGMENT)
        return str(segment["key"]) if segment else Point(self.values_of(trial.config)).key

    def _begin(self, trial: TuneTrial) -> str:
        run = self._key(trial)
        if run not in self._begun:
            self._begun.add(run)
            values = self.values_of(trial.config)
            params = {path: to_text(value) for path, value in values.items()}
            self.reporter.write(begin(run, f"{self.key}-{run}", Point(values).label, params, {}))
        return run

    def _log_events(self, trial: TuneTrial, events: list[dict[str, Any]]) -> None:
        self._unlogged.setdefault(trial.trial_id, []).extend(events)
        if events and time.monotonic() - self._logged_at.get(trial.trial_id, -LOG_SECONDS) >= LOG_SECONDS:
            self.reporter.write(*self._log(trial))
        if self.tensorboard is None:
            return
        writer = self._writer(trial)
        for event in events:
            for name, value in event["metrics"].items():
                writer.add_scalar(name, value, event["step"], walltime=event["time"])

    def _log(self, trial: TuneTrial) -> list[Entry]:
        """The entry of what the trial has reported since the last entry."""
        self._logged_at[trial.trial_id] = time.monotonic()
        events = self._unlogged.pop(trial.trial_id, [])
        return [{"do": "log", "run": self._begin(trial), "events": events}] if events else []

    def _writer(self, trial: TuneTrial) -> Any:
        if trial.trial_id not in self._writers:
            from tensorboardX import SummaryWriter

            values = self.values_of(trial.config)
            name = "_".join(f"{path.rpartition('.')[2]}={to_text(value)}" for path, value in values.items())
            folder = f"{self.tensorboard}/{name.replace('/', '-')[:80]}-{self._key(trial)[:6]}"
            self._writers[trial.trial_id] = SummaryWriter(folder)
        return self._writers[trial.trial_id]

    def _close(self, trial: TuneTrial, score: float | None, status: str) -> None:
        if self.tensorboard is not None:
            self._close_writer(self._writer(trial), self.values_of(trial.config), score)
            del self._writers[trial.trial_id]
        run = self._begin(trial)
        scored = [] if score is None else [log_entry(run, {"": {SCORE: score}})]
        self.reporter.write(*self._log(trial), *scored, finish(run, status))

    def _close_writer(self, writer: Any, values: Values, score: float | None) -> None:
        """Write a trial's score beside its values, for TensorBoard's tab HParams.

        `SummaryWriter.add_hparams` would write to a folder of its own, which TensorBoard shows as another run.
        """
        if score is not None:
            from tensorboardX.summary import hparams

            shown = {
                path: value if isinstance(value, int | float) else to_text(value) for path, value in values.items()
            }
            for summary in hparams(shown, {SCORE: score}):
                writer.file_writer.add_summary(summary)
            writer.add_scalar(SCORE, score, 0)
        writer.close()


def line(record: Record) -> str:
    """One line about a trial."""
    score = "" if record.score is None else f" {record.score:.4f}"
    more = f"; {text}" if (text := record.error or reused(record)) else ""
    return f"{record.label}: {record.status}{score} after {record.seconds:.0f} s{more}"
