"""What a run says of itself to MLflow: by way of its outbox, delivered beside the work, at any time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raymae.config import Config, TrackingConfig, redact, to_dict
from raymae.config.stages import TRAININGS
from raymae.datasets.splits.split_file import DESCRIPTION
from raymae.plan import Node, Plan
from raymae.storage.folder import Folder
from raymae.tracking.delivery import START_SECONDS, Delivery
from raymae.tracking.outbox import Entry, Outbox, left_over, server_id
from raymae.tracking.uri import tracking_uri
from raymae.training.state.provenance import source

if TYPE_CHECKING:
    from raymae.tracking.tracker import Tracker

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 10.0
"""How long a job that ends with an error waits for MLflow."""


class Journal:
    """What MLflow is told of a run, whose folder keeps it until then, and of its children.

    Args:
        folder: the run's.
    """

    def __init__(self, tracking: TrackingConfig, storage: Folder, folder: Folder) -> None:
        self.tracking, self.storage, self.folder = tracking, storage, folder
        self._started = False

    @cached_property
    def uri(self) -> str:
        """MLflow's; ValueError where none is named and the storage is no place for a default."""
        return tracking_uri(self.tracking, self.storage)

    @cached_property
    def server(self) -> str:
        """What the outbox calls it."""
        return server_id(self.tracking, self.uri)

    @cached_property
    def outbox(self) -> Outbox:
        """What there is to tell."""
        return Outbox(self.folder, self.server)

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(self.outbox, self.storage, self._connect, self._left_over)

    def _connect(self) -> Tracker:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the delivery tries again, and says so
        from raymae.tracking.tracker import Tracker  # which takes seconds

        return Tracker(self.tracking, self.storage)

    def _left_over(self) -> list[Outbox]:
        return left_over(self.storage, self.server, self.folder)

    def has_waiting(self) -> bool:
        """Whether MLflow lacks something that this run or another one of the storage had to say."""
        known = self.tracking.uri or self.storage.is_local
        return bool(known and (self.outbox.lacking() or self.outbox.open_runs() or self._left_over()))

    def start(self, *entries: Entry) -> None:
        """Begin to deliver, these entries and what waits.

        ValueError where MLflow can't be used as the settings say; one that is down is waited for beside the work.
        """
        if entries:
            self.write(*entries)
        self._delivery.start(START_SECONDS if self.uri.startswith("http") else None)
        self._started = True

    def write(self, *entries: Entry) -> None:
        """Say something."""
        self.outbox.write(*entries)
        self._delivery.wake()

    def check(self) -> None:
        """ValueError where MLflow has answered late that it can't be used."""
        self._delivery.check()

    @property
    def patience(self) -> float:
        """Seconds to wait for a server that is down, in the end."""
        return 60 * self.tracking.patience_minutes

    def close(self, status: str) -> str | None:
        """End all runs that are open and deliver what waits; None, or a line that says what still does."""
        if not self._started:
            return None
        left = "KILLED" if status == "FINISHED" else status  # of a child: a driver that died had begun it
        runs = reversed(self.outbox.open_runs())
        entries = [finish(run, left if run else status) for run in runs]
        if entries:
            self.write(*entries)
        waiting = self._delivery.close(self.patience if status == "FINISHED" else FAREWELL_SECONDS)
        if not waiting:
            return None
        return (
            f"MLflow at {redact(self.uri)} can't be reached ({self._delivery.reason or 'no answer'}): what it lacks "
            f"waits in {redact(self.outbox.folder.url)} and is delivered by the same command, or by the next job with "
            "this storage"
        )

    def abandon(self, status: str) -> None:
        """End all runs after an error, which counts for more than any that comes now."""
        try:
            if line := self.close(status):
                log.warning("%s", line)
        except Exception as error:
            log.warning("MLflow isn't told that the run ended: %s", redact(str(error)))


class PlanJournal(Journal):
    """The runs of a plan in MLflow: one of the job, with a child for each stage."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.config.tracking, plan.storage, plan.run_folder)
        self.plan = plan
        self._begun: set[str] = set()

    def start(self, *entries: Entry, begins: bool = True) -> None:
        """Begin to deliver: that the job begins (again), unless it has nothing to do, and what waits."""
        for name in self.outbox.open_runs():  # a driver that died had no time to say so
            if name and self.plan.nodes[name].reused:
                self.finished(self.plan.nodes[name], self.plan.nodes[name].artifact.result())
        config, commit = self.plan.config, source().get("git_commit")
        title, tags = f"{config.recipe}-{self.plan.job}", {"mlflow.source.git.commit": commit} if commit else {}
        own = [begin("", self.plan.key, title, flat(to_dict(config)), tags)] if begins else []
        super().start(*own, *entries)

    def begins(self, name: str) -> None:
        """A stage begins, or goes on."""
        if name not in self._begun:
            self.write(self._stage(name))

    def _stage(self, name: str) -> Entry:
        self._begun.add(name)
        node = self.plan.nodes[name]
        params = {"artifact": redact(node.artifact.url), "key": node.key}
        params |= stage_settings(self.plan.plan_of(name).config, node.stage)
        return begin(name, node.key, name, params, {}, place(node) if node.stage in TRAININGS else None)

    def finished(self, node: Node, result: dict[str, Any]) -> None:
        """A stage is finished with this result."""
        numbers = {"stage/": {key: float(value) for key, value in result.items() if isinstance(value, int | float)}}
        if node.stage == "evaluate":
            numbers[""] = scores(result["metrics"])
        files = [*reports(node, result), *(f"figures/{name}" for name in (node.artifact / "figures").names())]
        first = [] if node.name in self.outbox.open_runs() else [self._stage(node.name)]
        self.write(*first, tell(node.name, numbers, place(node), files), finish(node.name))

    def register(self) -> dict[str, str]:
        """Register the final classifier: model_uri, version and mlflow_run_id.

        AwayError where MLflow is down for `tracking.patience_minutes`.
        """
        plan = self.plan
        tags, metadata = model_card(plan)
        classifier = plan.nodes[plan.final].artifact
        (model_uri, version), run_id = self._delivery.call(
            lambda tracker, run_id: (tracker.register(run_id, classifier, metadata, tags), run_id), self.patience
        )
        return {"model_uri": model_uri, "version": version, "mlflow_run_id": run_id}


def begin(
    run: str, key: str, name: str, params: dict[str, str], tags: dict[str, str], events: str | None = None
) -> Entry:
    """The entry that a run begins with."""
    return {"do": "begin", "run": run, "key": key, "name": name, "params": params, "tags": tags, "events": events}


def tell(run: str, numbers: dict[str, dict[str, float]], artifact: str = "", files: Sequence[str] = ()) -> Entry:
    """The entry of a run's figures, and of files of a folder of the storage."""
    return {"do": "tell", "run": run, "numbers": numbers, "artifact": artifact, "files": list(files)}


def finish(run: str, status: str = "FINISHED") -> Entry:
    """The entry that a run ends with."""
    return {"do": "finish", "run": run, "status": status}


def place(node: Node) -> str:
    """A stage's folder within the storage."""
    return f"artifacts/{node.stage}/{node.key}"


def reports(node: Node, result: dict[str, Any]) -> tuple[str, ...]:
    """What a stage has written for people, beside its figures."""
    if node.stage == "prepare":
        return ("quarantine.csv",) if result["quarantined"] else ()
    return {
        "pseudo_label": ("report.md", "report.json"),
        "evaluate": ("report.md", "report.html", "report.json"),
    }.get(node.stage, ())


def model_card(plan: Plan) -> tuple[dict[str, str], dict[str, Any]]:
    """What the registered version says of itself, as tags, and the model's metadata.

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


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as "section.field": text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found


def scores(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics as "model/split/score", without what is given by class, bin, city or device."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        if (isinstance(value, dict) and prefix.count("/") < 2) or (key.startswith(("seen_", "unseen_")) and value):
            found |= scores(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = float(value)
    return found


def stage_settings(config: Config, name: str) -> dict[str, str]:
    """The settings that a stage reads, for MLflow."""
    sections = {
        "prepare": ("audio", "data"),
        "pretrain": ("model", "pretrain"),
        "pseudo_label": ("pseudo_label",),
        "consistency": ("model", "finetune", "consistency"),
        "evaluate": ("evaluate",),
        "register": ("tracking",),
    }.get(name, ("model", "finetune"))
    return flat({section: to_dict(getattr(config, section)) for section in sections})
