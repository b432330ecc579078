"""One trial: runs the missing stages of its plan, in this process (`raymae.pipeline.in_process`) or as it is told. No
Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raymae.config import changed
from raymae.config.stages import STAGES
from raymae.datasets.rows import class_names, rows_of
from raymae.pipeline.dry_run.dry_run import stage_flops, step_clips
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.storage.events import committed_events
from raymae.storage.folder import Folder
from raymae.sweep.points import copy_weights, stages_of
from raymae.sweep.search.population import Segment
from raymae.sweep.standing import write_predictions
from raymae.training.spec import StageSpec
from raymae.training.state.segment import Parent
from raymae.training.state.segment import Segment as StageSegment
from raymae.training.tasks.selection import METRICS

REPORT_SECONDS = 2.0
"""Least time between two reports without a score."""

Report = Callable[[dict[str, Any]], Any]
Runner = Callable[..., InProcess]
"""An `InProcess`, or a class of that kind, with all but `plan` and `on_event`."""


@dataclass
class Trial:
    """One trial of a sweep.

    `report` is called as described in `_report` and may end the trial by raising, as Tune does to stop one.
    """

    plan: Plan
    report: Report
    runner: Runner = InProcess
    """Makes what runs its stages."""
    part: StageSpec | None = None
    """The segment of the final stage that is trained in place of the whole; None: the whole."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    _events: list[dict[str, Any]] = field(default_factory=list)
    _reported_at: float = 0.0
    _steps: int = 0
    _flops: float = 0.0

    def run(self) -> dict[str, Any]:
        """Run the trial; returns the score and metrics of its final classifier on split val, its stages and FLOPs.

        Raises:
            ValueError: the feature store doesn't exist, or a stage's input is wrong.
            TimeIsUpError: the deadline is over; the training state has been saved as a checkpoint.
        """
        copy_weights(self.plan)
        maker = self.runner(plan=self.plan, on_event=self._report)
        for name in stages_of(self.plan):
            node, started = self.plan.nodes[name], time.time()
            artifact = node.artifact
            if name == self.plan.final:
                artifact = self.classifier
                self._report_again(artifact)
            made = maker.train(self.part) if self.part and name == self.plan.final else maker.make(node)
            result = artifact.result()
            self._steps += int(result.get("steps", 0))
            if STAGES[node.stage].kind:
                self._flops += result["steps"] * step_clips(self.plan, name) * stage_flops(self.plan, name)
            self.stages[name] = {
                "key": artifact.url.rpartition("/")[2],
                "reused": not made,
                "seconds": time.time() - started,
            }
        score = result["selection"]["value"]
        found = {"score": score, "metrics": result["metrics"], "stages": self.stages, "events": self._events}
        return found | {"flops": self._flops}

    @property
    def classifier(self) -> Folder:
        """The artifact of the final classifier."""
        return self.part.artifact if self.part else self.plan.nodes[self.plan.final].artifact

    def predict(self, folder: Folder, key: str) -> float:
        """Keep the predictions of the final classifier for the labelled clips of split val in the sweep's folder.

        Returns their score, by which trials are compared: that of training, whose forward passes are in its precision
        and not in float32, may differ by a clip that lies between two classes.
        """
        store, classifier = self.plan.store, self.classifier
        rows = rows_of(store.clips, "val", labelled=True)
        found, _ = self.runner(plan=self.plan).classify(rows, {"": classifier})
        labels = self.plan.config.finetune.labels
        names = class_names(store.clips, labels)
        return write_predictions(folder, key, store.clips.take(rows), names, found[""], labels)

    def _report_again(self, artifact: Folder) -> None:
        """Report again the scores of the final classifier up to the commit from which it resumes: what stops trials
        decides on all of them, and may have been started anew, too."""
        metric = METRICS[self.plan.config.finetune.labels]
        if artifact.is_done():
            return
        for event in committed_events(artifact):
            if metric in event["metrics"] and not event["last"]:
                self.report(self._scored(event, event["metrics"][metric]) | {"events": [], "stages": dict(self.stages)})

    def _scored(self, event: dict[str, Any], score: float) -> dict[str, Any]:
        """The report of a score of the final classifier."""
        percent = round(100 * event["step"] / event["steps"], 1)
        number = self._steps + event["step"]
        return {"score": score, "trial_step": number, "stage": self.plan.final, "percent": percent}

    def _report(self, spec: StageSpec, event: dict[str, Any]) -> None:
        """Report a stage's event: at once with a score of the final classifier, else every `REPORT_SECONDS`.

        A report has score (or NaN), trial_step (steps of all stages so far), percent (of the final stage's training,
        only with a score), the finished stages, and the events since the last report.
        """
        metrics = event["metrics"]
        number = self._steps + event["step"]
        names = {f"{spec.name}/{name}": value for name, value in metrics.items()}
        self._events.append({"step": number, "time": time.time(), "metrics": names})
        metric = METRICS[self.plan.config.finetune.labels]
        scored = spec.name == self.plan.final and metric in metrics and not event["last"]
        if not scored and time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        report = {"score": math.nan, "trial_step": number, "stage": spec.name}
        if scored:
            report = self._scored(event, metrics[metric])
        events, self._events = self._events, []
        self._reported_at = time.monotonic()
        self.report({**report, "events": events, "stages": dict(self.stages)})


def segment_spec(plan: Plan, one: Segment) -> StageSpec:
    """The specification of a segment of the plan's final stage: as that of the whole stage but for its values, its
    artifact, its end and what it begins from."""
    spec, stage = plan.spec(plan.final), plan.nodes[plan.final].stage

    def artifact(key: str) -> Folder:
        return plan.storage / f"artifacts/{stage}/{key}"

    end = round(spec.order().steps * (one.generation + 1) / one.generations)
    parent = Parent(key=one.parent, artifact=artifact(one.parent)) if one.parent else None
    part = StageSegment(key=one.key, end=end, parent=parent)
    return replace(spec, config=changed(spec.config, one.values), artifact=artifact(one.key), segment=part)
