"""Report a pipeline and its stages to MLflow."""

from __future__ import annotations

from typing import Any

from raymae.config import Config, redact, to_dict
from raymae.config.stages import STAGES
from raymae.features.manifest import QUARANTINE
from raymae.pipeline.plan.plan import Node, Plan
from raymae.pipeline.reports.describe import (
    card_files,
    data_set,
    job_note,
    run_tags,
    scores,
    version_facts,
    version_note,
)
from raymae.tracking.outbox import Entry
from raymae.tracking.reporter import Reporter, begin, finish, flat, log_entry
from raymae.training.figures import CURVES, final_curves


class PlanReporter(Reporter):
    """The runs of a plan in MLflow: one of the job, with a child for each stage."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.config.tracking, plan.storage, plan.run_folder)
        self.plan = plan
        self._begun: set[str] = set()

    def start(self, *entries: Entry, begins: bool = True) -> None:
        """Start delivery: the run itself, unless the job has nothing to do, and the entries that wait."""
        for name in self.outbox.open_runs():  # a driver that died could not report them as finished
            if name and self.plan.nodes[name].reused:
                self.finished(self.plan.nodes[name], self.plan.nodes[name].artifact.result())
        super().start(*([self._job()] if begins else []), *entries)

    def _job(self) -> Entry:
        plan, title = self.plan, f"{self.plan.config.recipe}-{self.plan.job}"
        tags = run_tags(plan, job_note(plan))
        return begin("", plan.key, title, flat(to_dict(plan.config)), tags, data=data_set(plan))

    def begins(self, name: str) -> None:
        """Report that a stage starts or resumes."""
        if name not in self._begun:
            self.write(self._stage(name))

    def _stage(self, name: str) -> Entry:
        self._begun.add(name)
        node = self.plan.nodes[name]
        params = {"artifact": redact(node.artifact.url), "key": node.key}
        params |= stage_settings(self.plan.plan_of(name).config, node.stage)
        stage, events = STAGES[node.stage], place(node) if STAGES[node.stage].kind else None
        tags, data = run_tags(self.plan, stage.does), data_set(self.plan, node.stage)
        return begin(name, node.key, name, params, tags, events, data)

    def finished(self, node: Node, result: dict[str, Any]) -> None:
        """Report the result of a finished stage."""
        numbers = {"stage/": {key: float(value) for key, value in result.items() if isinstance(value, int | float)}}
        if node.stage == "evaluate":
            numbers[""] = scores(result["metrics"])
        if STAGES[node.stage].kind:
            node.artifact.write_bytes(CURVES, final_curves(node.artifact, node.name))
        files = [*reports(node, result), *(f"figures/{name}" for name in (node.artifact / "figures").names())]
        first = [] if node.name in self.outbox.open_runs() else [self._stage(node.name)]
        self.write(*first, log_entry(node.name, numbers, place(node), files), finish(node.name))

    def register(self) -> dict[str, str]:
        """Register the final classifier: model_uri, version, mlflow_run_id and mlflow_experiment_id.

        Raises AwayError where MLflow is down for `tracking.patience_minutes`.
        """
        plan = self.plan
        (tags, metadata), note, beside = version_facts(plan), version_note(plan), card_files(plan)
        classifier = plan.nodes[plan.final].artifact
        (model_uri, version), run_id, experiment_id = self._delivery.call(
            lambda tracker, run_id: (
                tracker.register(run_id, classifier, metadata, tags, note, beside),
                run_id,
                tracker.experiment_id,
            ),
            self.patience,
        )
        ids = {"mlflow_run_id": run_id, "mlflow_experiment_id": experiment_id}
        return {"model_uri": model_uri, "version": version, **ids}


def place(node: Node) -> str:
    """A stage's folder within the storage."""
    return f"artifacts/{node.stage}/{node.key}"


def reports(node: Node, result: dict[str, Any]) -> tuple[str, ...]:
    """The pages that a stage has written, beside its figures."""
    if node.stage == "prepare":
        return (QUARANTINE,) if result["quarantined"] or result["silent"] else ()
    return STAGES[node.stage].reports


def stage_settings(config: Config, name: str) -> dict[str, str]:
    """The settings that a stage reads, for MLflow."""
    return flat({section: to_dict(getattr(config, section)) for section in STAGES[name].sections})
