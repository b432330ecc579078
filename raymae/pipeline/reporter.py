"""Report a pipeline and its stages to MLflow."""

from __future__ import annotations

import json
from typing import Any

from raymae.config import Config, redact, to_dict
from raymae.config.stages import STAGES
from raymae.datasets.splits.split_file import DESCRIPTION
from raymae.features.manifest import QUARANTINE
from raymae.pipeline.plan.plan import Node, Plan
from raymae.tracking.outbox import Entry
from raymae.tracking.reporter import Reporter, begin, finish, flat, log_entry
from raymae.training.state.provenance import source


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
        config, commit = self.plan.config, source().get("git_commit")
        title, tags = f"{config.recipe}-{self.plan.job}", {"mlflow.source.git.commit": commit} if commit else {}
        own = [begin("", self.plan.key, title, flat(to_dict(config)), tags)] if begins else []
        super().start(*own, *entries)

    def begins(self, name: str) -> None:
        """Report that a stage starts or resumes."""
        if name not in self._begun:
            self.write(self._stage(name))

    def _stage(self, name: str) -> Entry:
        self._begun.add(name)
        node = self.plan.nodes[name]
        params = {"artifact": redact(node.artifact.url), "key": node.key}
        params |= stage_settings(self.plan.plan_of(name).config, node.stage)
        return begin(name, node.key, name, params, {}, place(node) if STAGES[node.stage].kind else None)

    def finished(self, node: Node, result: dict[str, Any]) -> None:
        """Report the result of a finished stage."""
        numbers = {"stage/": {key: float(value) for key, value in result.items() if isinstance(value, int | float)}}
        if node.stage == "evaluate":
            numbers[""] = scores(result["metrics"])
        files = [*reports(node, result), *(f"figures/{name}" for name in (node.artifact / "figures").names())]
        first = [] if node.name in self.outbox.open_runs() else [self._stage(node.name)]
        self.write(*first, log_entry(node.name, numbers, place(node), files), finish(node.name))

    def register(self) -> dict[str, str]:
        """Register the final classifier: model_uri, version and mlflow_run_id.

        Raises AwayError where MLflow is down for `tracking.patience_minutes`.
        """
        plan = self.plan
        tags, metadata = model_card(plan)
        classifier = plan.nodes[plan.final].artifact
        (model_uri, version), run_id = self._delivery.call(
            lambda tracker, run_id: (tracker.register(run_id, classifier, metadata, tags), run_id), self.patience
        )
        return {"model_uri": model_uri, "version": version, "mlflow_run_id": run_id}


def place(node: Node) -> str:
    """A stage's folder within the storage."""
    return f"artifacts/{node.stage}/{node.key}"


def reports(node: Node, result: dict[str, Any]) -> tuple[str, ...]:
    """The pages that a stage has written, beside its figures."""
    if node.stage == "prepare":
        return (QUARANTINE,) if result["quarantined"] or result["silent"] else ()
    return STAGES[node.stage].reports


def model_card(plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
    """The tags of a registered version, and the metadata of its model.

    Both hold recipe, split with its hash, metrics by split and, from a working tree of git, the commit; the tags class
    names and front end too (`Registry.register` adds them to the metadata) and what jobs/promote.py looks for.
    """
    classifier, evaluation = plan.nodes[plan.final].artifact.read_json("classifier.json"), plan.nodes["evaluate"]
    metrics = evaluation.artifact.result()["metrics"][plan.final]
    split = plan.run_folder.read_json(DESCRIPTION)
    said = {"recipe": plan.config.recipe, "split": split["name"], "split_hash": split["hash"], **source()}
    tags = {
        **said,
        "class_names": json.dumps(classifier["class_names"]),
        "front_end": json.dumps(classifier["audio"]),
        "evaluation": evaluation.key,
        "model": plan.final,
        **{name: f"{value:.6g}" for name, value in scores(metrics).items()},
    }
    stages = {name: other.key for name, other in plan.nodes.items() if name != "register"}
    return tags, {**said, "stages": stages, "metrics": metrics}


def scores(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics as "model/split/score", without those by class, bin, city or device."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if (isinstance(value, dict) and prefix.count("/") < 2) or (key.startswith(("seen_", "unseen_")) and value):
            found |= scores(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def stage_settings(config: Config, name: str) -> dict[str, str]:
    """The settings that a stage reads, for MLflow."""
    return flat({section: to_dict(getattr(config, section)) for section in STAGES[name].sections})
