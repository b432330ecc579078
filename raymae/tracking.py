"""MLflow: runs, metrics, files and the model registry. The only importer of mlflow, used by the driver alone."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, Schema

from raymae import pyfunc
from raymae.artifacts import Folder
from raymae.config import TrackingConfig, redact
from raymae.plan import tracking_uri

KEY = "raymae.key"
PARENT = "mlflow.parentRunId"
MAX_PARAM = 5000
BATCH = 900
REQUIREMENTS = ("fsspec", "numpy", "pandas", "pyarrow", "safetensors", "scipy", "soundfile", "soxr", "timm", "torch")
"""What the registered model needs beside the package itself, which it carries."""


class Tracker:
    """One experiment of an MLflow server or file."""

    def __init__(self, config: TrackingConfig, storage: Folder) -> None:
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.config = config
        self.uri = tracking_uri(config, storage)
        mlflow.set_tracking_uri(self.uri)
        self.client = MlflowClient(self.uri)
        self.experiment_id = self._experiment(storage)
        self._steps: dict[str, int] = {}

    def _experiment(self, storage: Folder) -> str:
        found = self.client.get_experiment_by_name(self.config.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None if self.config.uri else Path(storage.path("mlflow-artifacts")).as_uri()
        return str(self.client.create_experiment(self.config.experiment, artifact_location=location))

    def run(self, key: str, name: str, *, parent: str | None = None, params: dict[str, str] | None = None) -> str:
        """The run with this key below this parent: the one that stands, which goes on, or a new one; its id."""
        query = f"tags.`{KEY}` = '{key}'" + (f" and tags.`{PARENT}` = '{parent}'" if parent else "")
        found = self.client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
            self.client.set_terminated(run_id, "RUNNING")
            return run_id
        tags = {KEY: key} | ({PARENT: parent} if parent else {})
        run_id = str(self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id)
        entries = [Param(name, redact(value)[:MAX_PARAM]) for name, value in (params or {}).items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[start : start + 100])
        return run_id

    def log_events(self, run_id: str, events: list[dict[str, Any]]) -> None:
        """Log {step, time, metrics} events; those of steps that are logged already are passed over."""
        seen = self._steps.get(run_id)
        if seen is None:
            seen = self._last_step(run_id, events)
        metrics = [
            Metric(name, value, int(1000 * event["time"]), event["step"])
            for event in events
            if event["step"] > seen
            for name, value in event["metrics"].items()
        ]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        self._steps[run_id] = max([seen, *(event["step"] for event in events)])

    def _last_step(self, run_id: str, events: list[dict[str, Any]]) -> int:
        known = self.client.get_run(run_id).data.metrics
        names = {name for event in events for name in event["metrics"] if name in known}
        return max(
            (metric.step for name in names for metric in self.client.get_metric_history(run_id, name)), default=-1
        )

    def log_numbers(self, run_id: str, numbers: dict[str, float]) -> None:
        """Log the final figures of a stage."""
        now = int(1000 * time.time())
        metrics = [Metric(f"stage/{name}", value, now, 0) for name, value in numbers.items()]
        self.client.log_batch(run_id, metrics=metrics)

    def log_bytes(self, run_id: str, name: str, content: bytes) -> None:
        """Log a file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            self.client.log_artifact(run_id, str(path), str(Path(name).parent) if "/" in name else None)

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """End a run; one that has ended keeps its status."""
        if self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, status)

    def register(self, run_id: str, classifier: Folder, metadata: dict[str, Any]) -> tuple[str, str]:
        """Log the classifier as a model of the run, register it and move the alias; its URI and version.

        The same classifier registered by the same run is found again.
        """
        name = self.config.registered_model
        for version in self._versions(name):
            if version.run_id == run_id and version.tags.get("classifier") == redact(classifier.url):
                self.client.set_registered_model_alias(name, self.config.alias, version.version)
                return f"models:/{name}/{version.version}", str(version.version)
        card = classifier.read_json("classifier.json")
        with tempfile.TemporaryDirectory() as folder:
            for file in ("classifier.json", "model.safetensors"):
                classifier.download(file, Path(folder) / file)
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(Path(pyfunc.__file__)),
                    artifacts={pyfunc.CLASSIFIER: folder},
                    code_paths=[str(Path(pyfunc.__file__).parent)],
                    pip_requirements=list(REQUIREMENTS),
                    signature=signature(card["class_names"]),
                    metadata={**metadata, "class_names": card["class_names"], "audio": card["audio"]},
                    registered_model_name=name,
                )
        self.client.set_terminated(run_id, "RUNNING")
        version = str(info.registered_model_version)
        self.client.set_model_version_tag(name, version, "classifier", redact(classifier.url))
        self.client.set_registered_model_alias(name, self.config.alias, version)
        return f"models:/{name}/{version}", version

    def _versions(self, name: str) -> list[Any]:
        try:
            return list(self.client.search_model_versions(f"name='{name}'"))
        except MlflowException:
            return []

    def exists(self, model_uri: str) -> bool:
        """Whether the registry has the version that `models:/name/version` names."""
        _, name, version = model_uri.rsplit("/", 2)
        return any(str(found.version) == version for found in self._versions(name))

    def download_classifier(self, model_uri: str) -> str:
        """The local folder of a registered model's classifier."""
        folder = Path(mlflow.artifacts.download_artifacts(model_uri)) / "artifacts"
        found = [path.parent for path in folder.rglob("classifier.json")]
        if not found:
            raise ValueError(f"{redact(model_uri)} holds no scene classifier (no classifier.json)")
        return str(found[0])


def signature(class_names: list[str]) -> ModelSignature:
    """A path in (a column of any name, so that a list of paths will do); label, confidence, error and a probability
    per class out."""
    probabilities = [ColSpec("float", name) for name in class_names]
    first = [ColSpec("string", "scene_label", required=False), ColSpec("float", "confidence", required=False)]
    error = ColSpec("string", "error", required=False)
    return ModelSignature(Schema([ColSpec("string")]), Schema([*first, error, *probabilities]))
