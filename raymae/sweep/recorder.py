"""What the driver writes of the trials while they run: records, MLflow, TensorBoard, a line for each."""

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
from raymae.sweep.space import Values
from raymae.tracking.outbox import Entry
from raymae.tracking.reporter import Reporter, begin, finish, log_entry

SAID_SECONDS = 30.0
"""Between two entries of a trial's metrics for MLflow: each is a file. TensorBoard has them at once."""


class Recorder(Callback):
    """Tune's callback on the driver.

    Args:
        folder: the sweep's.
        values_of: from Tune's configuration of a trial to its values by path.
        reporter: what MLflow is told; with the sweep's key.
        total: trials of the sweep, `known` of which have been recorded before.
        tensorboard: a local folder, or None.
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
    ) -> None:
        self.folder, self.values_of, self.reporter = folder, values_of, reporter
        self.key, self.tensorboard = key, tensorboard
        self.done, self.total = known, total
        self._started: dict[str, float] = {}
        self._history: dict[str, list[dict[str, float]]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._begun: set[str] = set()
        self._unsaid: dict[str, list[dict[str, Any]]] = {}
        self._said: dict[str, float] = {}
        self._writers: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune stores a copy, to restore a sweep from: ours goes on from its records, and its reporter has threads."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial begins (or begins again after its process died)."""
        self._started.setdefault(trial.trial_id, time.time())
        self._begin(trial)

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported."""
        self._last[trial.trial_id] = result
        if "percent" in result and "status" not in result:
            point = {"percent": result["percent"], "step": result["trial_step"], "score": result["score"]}
            self._history.setdefault(trial.trial_id, []).append(point)
        self._pass_on(trial, result.get("events", []))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial ended by itself, or was stopped."""
        last = self._last.get(trial.trial_id, {})
        if last.get("status") == "cut":  # its time was up: the next start goes on
            self._close(trial, None, "KILLED")
            return
        self._record(trial, last.get("status", "stopped"), last.get("error", ""))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A trial's process died too often."""
        lines = str(getattr(trial, "error_msg", "") or trial.get_error() or "its process died").strip().splitlines()
        self._record(trial, "failed", lines[-1])

    def _record(self, trial: TuneTrial, status: Any, error: str) -> None:
        last, history = self._last.get(trial.trial_id, {}), self._history.get(trial.trial_id, [])
        score = number(last.get("score"))
        if score is None and status == "stopped" and history:
            score = history[-1]["score"]
        values = self.values_of(trial.config)
        record = Record(
            key=Point(values).key,
            changes=values,
            status=status,
            score=score,
            metrics={name: float(value) for name, value in last.get("metrics", {}).items()},
            history=history,
            stages=last.get("stages", {}),
            error=error,
            seconds=time.time() - self._started.get(trial.trial_id, time.time()),
        )
        write_record(self.folder, record)
        self._close(
            trial, record.score, "FAILED" if status == "failed" else "KILLED" if status == "stopped" else "FINISHED"
        )
        self.done += 1
        print(f"trial {self.done} of {self.total}: {line(record)}", flush=True)

    # MLflow and TensorBoard ---------------------------------------------------------------------------------------

    def _run(self, trial: TuneTrial) -> str:
        """The trial's run in the outbox."""
        return Point(self.values_of(trial.config)).key

    def _begin(self, trial: TuneTrial) -> str:
        run = self._run(trial)
        if run not in self._begun:
            self._begun.add(run)
            values = self.values_of(trial.config)
            params = {path: to_text(value) for path, value in values.items()}
            self.reporter.write(begin(run, f"{self.key}-{run}", Point(values).label, params, {}))
        return run

    def _pass_on(self, trial: TuneTrial, events: list[dict[str, Any]]) -> None:
        self._unsaid.setdefault(trial.trial_id, []).extend(events)
        if events and time.monotonic() - self._said.get(trial.trial_id, -SAID_SECONDS) >= SAID_SECONDS:
            self.reporter.write(*self._log(trial))
        if self.tensorboard is None:
            return
        writer = self._writer(trial)
        for event in events:
            for name, value in event["metrics"].items():
                writer.add_scalar(name, value, event["step"], walltime=event["time"])

    def _log(self, trial: TuneTrial) -> list[Entry]:
        """The entry of what the trial has reported since the last one."""
        self._said[trial.trial_id] = time.monotonic()
        events = self._unsaid.pop(trial.trial_id, [])
        return [{"do": "log", "run": self._begin(trial), "events": events}] if events else []

    def _writer(self, trial: TuneTrial) -> Any:
        if trial.trial_id not in self._writers:
            from tensorboardX import SummaryWriter

            values = self.values_of(trial.config)
            name = "_".join(f"{path.rpartition('.')[2]}={to_text(value)}" for path, value in values.items())
            folder = f"{self.tensorboard}/{name.replace('/', '-')[:80]}-{Point(values).key[:6]}"
            self._writers[trial.trial_id] = SummaryWriter(folder)
        return self._writers[trial.trial_id]

    def _close(self, trial: TuneTrial, score: float | None, status: str) -> None:
        if writer := self._writers.pop(trial.trial_id, None):
            writer.close()
        run = self._begin(trial)
        scored = [] if score is None else [log_entry(run, {"": {"score": score}})]
        self.reporter.write(*self._log(trial), *scored, finish(run, status))


def line(record: Record) -> str:
    """A trial in a line."""
    score = "" if record.score is None else f" {record.score:.4f}"
    more = f"; {text}" if (text := record.error or reused(record)) else ""
    return f"{record.label}: {record.status}{score} after {record.seconds:.0f} s{more}"
