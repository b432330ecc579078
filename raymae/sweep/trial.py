"""One trial: the stages of its plan that don't stand yet, one after the other in this process. No Ray.

The feature store has to stand. A stage that another trial is making is waited for (`raymae.sweep.claims`); one that was
cut off goes on from its newest commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.config import to_dict
from raymae.deadline import FOREVER, Deadline
from raymae.invariance import Reading
from raymae.keys import FINETUNED
from raymae.order import Rows
from raymae.plan import Node, Plan
from raymae.selection import METRICS
from raymae.session import BareSession
from raymae.spec import StageSpec
from raymae.stages import run_stage
from raymae.store import iterate
from raymae.sweep.claims import claimed
from raymae.sweep.ground import bring_weights, stages_of
from raymae.teacher import run_round
from raymae.views import classify

CLAIMS = "sweeps/claims"
TELL_SECONDS = 2.0
"""Least time between two reports that say nothing of the score."""
BATCH = 64

Report = Callable[[dict[str, Any]], Any]


class TrialSession(BareSession):
    """A process without Ray's session that passes every event on."""

    def __init__(self, spec: StageSpec, torch_device: str, tell: Callable[[StageSpec, dict[str, Any]], None]) -> None:
        super().__init__(spec.store, spec.artifact, torch_device)
        self.spec, self.tell = spec, tell

    def report(self, event: dict[str, Any]) -> None:
        """Write the event and tell of it."""
        super().report(event)
        self.tell(self.spec, event)


@dataclass
class Trial:
    """One trial of a sweep.

    `report` gets what Tune gets (`_tell`) and may end the trial by raising, as Tune does to one that it stops.
    """

    plan: Plan
    report: Report
    torch_device: str = "cpu"
    deadline: Deadline = FOREVER
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _events: list[dict[str, Any]] = field(default_factory=list)
    _told: float = 0.0
    _steps: int = 0

    def run(self) -> dict[str, Any]:
        """Run it to its end; the score and metrics of its final classifier on split val, and its stages.

        Raises:
            ValueError: the feature store isn't there, and whatever the stages raise of their input.
            TimeIsUpError: the deadline is over; a commit stands.
        """
        bring_weights(self.plan)
        for name in stages_of(self.plan):
            node, started = self.plan.nodes[name], time.time()
            made = self._make(node)
            result = node.artifact.result()
            self._steps += int(result.get("steps", 0))
            self.stages[name] = {"key": node.key, "reused": not made, "seconds": time.time() - started}
        score = result["selection"]["value"]
        return {"score": score, "metrics": result["metrics"], "stages": self.stages, "events": self._events}

    def _make(self, node: Node) -> bool:
        """Make a stage unless it stands; whether it was made here."""
        if node.artifact.is_done():
            return False
        if node.stage == "prepare":
            raise ValueError(f"the feature store {node.key} isn't there")
        where = f"before {node.name}"
        folder = self.plan.storage / f"{CLAIMS}/{node.stage}-{node.key}"
        with claimed(folder, node.artifact.is_done, lambda: self.deadline.check(where)) as mine:
            if mine:
                self.deadline.check(where)
                if node.stage in ("pretrain", *FINETUNED):
                    self._train(self.plan.spec(node.name))
                else:
                    self._label(node)
            return mine

    def _train(self, spec: StageSpec) -> None:
        if not run_stage(spec, TrialSession(spec, self.torch_device, self._tell), self.deadline):
            raise self.deadline.error(f"within {spec.name}")

    def _tell(self, spec: StageSpec, event: dict[str, Any]) -> None:
        """Report a stage's event: at once where it has a score of the final classifier, otherwise now and then.

        A report has score (NaN where there is none), trial_step (updates in all stages so far), with a score also
        percent (of the final stage's training), the finished stages, and the events since the last report.
        """
        metrics = event["metrics"]
        number = self._steps + event["step"]
        names = {f"{spec.name}/{name}": value for name, value in metrics.items()}
        self._events.append({"step": number, "time": time.time(), "metrics": names})
        metric = METRICS[self.plan.config.finetune.labels]
        judged = spec.name == self.plan.final and metric in metrics and not event["last"]
        if not judged and time.monotonic() - self._told < TELL_SECONDS:
            return
        report = {"score": metrics[metric] if judged else math.nan, "trial_step": number, "stage": spec.name}
        if judged:
            report["percent"] = round(100 * event["step"] / event["steps"], 1)
        events, self._events = self._events, []
        self._told = time.monotonic()
        self.report({**report, "events": events, "stages": dict(self.stages)})

    def _label(self, node: Node) -> None:
        """A round of pseudo-labels, as the pipeline makes them over a cluster."""
        started, views = time.time(), self.plan.config.pseudo_label.views
        result = run_round(
            self.plan,
            node.name,
            lambda rows, teacher: classify(self.plan.store, rows, teacher, views, self.torch_device),
            self._embed,
        )
        seconds = time.time() - started
        node.artifact.write_json("config.json", to_dict(self.plan.config))
        node.artifact.finish(result | {"work_seconds": seconds, "seconds": seconds})

    def _embed(self, rows: Rows, reading: Reading) -> NDArray[np.float32]:
        """Embeddings (n, E) of rows of the store."""
        embedder = reading.embedder(self.torch_device)
        parts = [
            embedder.clips(log_mel, frames, reading.pool)
            for _, log_mel, frames in iterate(self.plan.store, rows, BATCH)
        ]
        return np.concatenate(parts)
