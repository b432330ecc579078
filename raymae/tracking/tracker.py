"""MLflow's runs, metrics and files, through its client; used by the driver alone.

Every call can be repeated and is logged once, so that `raymae.tracking.delivery` can repeat what a server that failed
may have received.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, ViewType
from mlflow.exceptions import InvalidUrlException, MlflowException, RestException
from mlflow.tracking import MlflowClient

from raymae.config import TrackingConfig, redact
from raymae.storage.folder import Folder
from raymae.tracking.receiver import AwayError
from raymae.tracking.registry import Registry, Version, clean
from raymae.tracking.uri import one_at_a_time, tracking_uri

__all__ = ["Registry", "Tracker", "Version"]

KEY = "raymae.key"
PARENT = "mlflow.parentRunId"
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag that says that an experiment is about training; older pages of MLflow open it so, newer ones by their address
(`raymae.tracking.uri.experiment_page`)."""
CONTEXT = "mlflow.data.context"
MAX_PARAM = 5000
BATCH = 900
DOWN = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}
"""Error codes of a server that may work later."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}
"""Error codes of a permanent refusal."""


class Tracker(Registry):
    """One experiment of an MLflow server or file; ValueError if it can't be opened or refuses the model's name.

    AwayError if an HTTP server doesn't answer, or answers that it is down.
    MLflow's progress bars and messages below warnings are switched off in this process.
    """

    def __init__(self, config: TrackingConfig, storage: Folder) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.config = config
        self.uri = tracking_uri(config, storage)
        self._steps: dict[str, int] = {}
        if re.fullmatch(r"latest|v\d+", config.alias, re.IGNORECASE):
            raise ValueError(f"tracking.alias = {config.alias!r} is a name that MLflow reserves for versions")
        try:
            mlflow.set_tracking_uri(self.uri)
            with one_at_a_time(self.uri, lambda new: MlflowClient(new).search_experiments(max_results=1)):
                self.client = MlflowClient(self.uri)
                self.experiment_id = self._experiment(storage)
                self._check_names()
        except Exception as error:  # every kind of store has its own driver's exceptions
            reason = " ".join(redact(str(error)).split())
            raise self._contact_error(error, f"MLflow at {redact(self.uri)} can't be used: {reason}") from None

    @property
    def _is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    def _contact_error(self, error: Exception, message: str) -> ValueError | AwayError:
        """The error to raise for an error of the first contact."""
        causes = list(chain(error))
        lost = any(isinstance(one, requests.ConnectionError | requests.Timeout) for one in causes)
        if not self._is_server and "database is locked" in str(error):
            return AwayError(message)
        down = isinstance(error, MlflowException) and error.error_code in DOWN
        mistaken = any(isinstance(one, requests.exceptions.SSLError | InvalidUrlException) for one in causes)
        if not self._is_server or mistaken or not (lost or down):
            return ValueError(message)
        away = AwayError(message)
        away.unknown_host = any(isinstance(one, socket.gaierror) for one in causes)
        return away

    def refuses(self, error: Exception) -> bool:
        """Whether an error is MLflow's own, permanent refusal."""
        own = isinstance(error, RestException) or not self._is_server  # a proxy without its server answers 404 too
        return own and isinstance(error, MlflowException) and error.error_code in REFUSALS

    def forget(self) -> None:
        """Forget which steps are logged, to ask the server again."""
        self._steps.clear()

    def _experiment(self, storage: Folder) -> str:
        found = self.client.get_experiment_by_name(self.config.experiment)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise ValueError(
                    f"its experiment {self.config.experiment!r} is deleted: restore it (mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}) or name another one by --tracking.experiment"
                )
            if KIND not in found.tags:
                self.client.set_experiment_tag(found.experiment_id, KIND, TRAINING)
            return str(found.experiment_id)
        location = None if self.config.uri else Path(storage.path("mlflow-artifacts")).as_uri()
        return str(
            self.client.create_experiment(self.config.experiment, artifact_location=location, tags={KIND: TRAINING})
        )

    def run(
        self,
        key: str,
        name: str,
        *,
        parent: str | None = None,
        params: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        when: float | None = None,
    ) -> str:
        """Resume the run with this key below this parent, or create it; its id.

        A new run starts at `when`, seconds since 1970. Parameters that a run has keep their values.
        """
        found = self._runs(key, parent)
        if found:
            self.client.set_terminated(found[0], "RUNNING")
        else:
            run_tags = {**(tags or {}), KEY: key} | ({PARENT: parent} if parent else {})
            start = None if when is None else int(1000 * when)
            self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags=run_tags)
        run_id, *others = found or self._runs(key, parent)
        for other in others:  # empty: created by an earlier request whose answer was lost
            self.client.delete_run(other)
        known = self.client.get_run(run_id).data.params if found and params else {}
        missing = {name: redact(value)[:MAX_PARAM] for name, value in (params or {}).items() if name not in known}
        entries = [Param(name, value) for name, value in missing.items()]
        for start_at in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start_at : start_at + 100])
        return run_id

    def _runs(self, key: str, parent: str | None) -> list[str]:
        """The runs of this key, those with parameters or metrics first."""
        query = f"tags.`{KEY}` = '{key}'" + (f" and tags.`{PARENT}` = '{parent}'" if parent else "")
        found = self.client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY)
        empty = {str(run.info.run_id): not (run.data.params or run.data.metrics) for run in found}
        return sorted(empty, key=lambda run_id: (empty[run_id], run_id))

    def log_data(self, run_id: str, data: dict[str, Any]) -> None:
        """Log a data set as an input of a run, once.

        Keys of `data`: name; digest, at most 36 characters; context, such as training; source_type and source, where it
        is from; profile, what it holds.
        """
        source, profile = json.dumps(data["source"]), json.dumps(data["profile"])
        found = Dataset(data["name"], data["digest"], data["source_type"], source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(found, [InputTag(CONTEXT, data["context"])])])

    def log_events(self, run_id: str, events: list[dict[str, Any]]) -> None:
        """Log {step, time, metrics} events; those of steps that are logged already are skipped."""
        logged = self._steps.get(run_id)
        if logged is None:
            logged = self._last_step(run_id, events)
        for metrics in batches(event for event in events if event["step"] > logged):
            self.client.log_batch(run_id, metrics=metrics)
        self._steps[run_id] = max([logged, *(event["step"] for event in events)])

    def _last_step(self, run_id: str, events: list[dict[str, Any]]) -> int:
        known = self.client.get_run(run_id).data.metrics
        names = {name for event in events for name in event["metrics"] if name in known}
        return max(
            (metric.step for name in names for metric in self.client.get_metric_history(run_id, name)), default=-1
        )

    def log_numbers(
        self, run_id: str, numbers: dict[str, float], prefix: str = "stage/", when: float | None = None
    ) -> None:
        """Log the final metrics of a stage at `when`, by default now; a repeat with the same time changes nothing."""
        now = int(1000 * (time.time() if when is None else when))
        metrics = [Metric(clean(prefix + name), value, now, 0) for name, value in numbers.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

    def log_bytes(self, run_id: str, name: str, content: bytes) -> None:
        """Log a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            self.client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)

    def finish(self, run_id: str, status: str = "FINISHED", when: float | None = None) -> None:
        """End a run, now or at `when`; one that has ended keeps its status."""
        if self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, status, None if when is None else int(1000 * when))


def batches(events: Iterable[dict[str, Any]]) -> Iterator[list[Metric]]:
    """The points of some events in batches of a request each, no event in two: a step is logged whole or not at all."""
    found: list[Metric] = []
    for event in events:
        points = [
            Metric(name, value, int(1000 * event["time"]), event["step"]) for name, value in event["metrics"].items()
        ]
        if found and len(found) + len(points) > BATCH:
            yield found
            found = []
        found += points
    if found:
        yield found


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
