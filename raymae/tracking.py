"""MLflow: runs, metrics, files and the model registry. The only importer of mlflow, used by the driver alone."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.tracking import MlflowClient
from mlflow.types.schema import AnyType, ColSpec, Schema

from raymae import pyfunc
from raymae.artifacts import Folder
from raymae.config import TrackingConfig, redact
from raymae.plan import tracking_uri

KEY = "raymae.key"
PARENT = "mlflow.parentRunId"
MAX_PARAM = 5000
BATCH = 900
REQUIREMENTS = (
    "fsspec",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "soundfile",
    "soxr",
    "timm",
    "torch",
)
"""What the registered model needs beside the package itself, which it carries."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    uri: str
    number: str
    evaluation: str | None
    """The key of its evaluation."""
    model: str | None
    """Its name there."""


class Tracker:
    """One experiment of an MLflow server or file; ValueError where it can't be opened or can't take the model's name.

    MLflow's progress bars and messages below warnings are switched off in this process.
    """

    def __init__(self, config: TrackingConfig, storage: Folder) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.config = config
        self.uri = tracking_uri(config, storage)
        self._steps: dict[str, int] = {}
        if re.fullmatch(r"latest|v\d+", config.alias, re.IGNORECASE):
            raise ValueError(f"tracking.alias = {config.alias!r} is a name that MLflow keeps for versions")
        try:
            mlflow.set_tracking_uri(self.uri)
            self.client = MlflowClient(self.uri)
            self.experiment_id = self._experiment(storage)
            self._check_names()
        except Exception as error:  # each kind of store fails with the exceptions of its own driver
            reason = " ".join(redact(str(error)).split())
            raise ValueError(f"MLflow at {redact(self.uri)} can't be used: {reason}") from None

    def _check_names(self) -> None:
        """Ask for the model: an unusable name or alias shows now instead of when everything is trained."""
        try:
            self.client.get_model_version_by_alias(self.config.registered_model, self.config.alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

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

    def log_numbers(self, run_id: str, numbers: dict[str, float], prefix: str = "stage/") -> None:
        """Log the final figures of a stage; what MLflow takes in no name, as an apostrophe, becomes an underscore."""
        now = int(1000 * time.time())
        names = {name: re.sub(r"[^\w\-. /]", "_", prefix + name) for name in numbers}
        metrics = [Metric(names[name], value, now, 0) for name, value in numbers.items()]
        for start in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH])

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

    def register(
        self, run_id: str, classifier: Folder, metadata: dict[str, Any], tags: dict[str, str] | None = None
    ) -> tuple[str, str]:
        """Log the classifier as a model of the run, register it and move the alias; its URI and version.

        The same classifier registered by the same run is found again. `tags` go to the version: evaluation (the key of
        its evaluation) and model (its name there) are what `version` reads.
        """
        name = self.config.registered_model
        for version in self._versions(name):
            if version.run_id == run_id and version.tags.get("classifier") == redact(classifier.url):
                self.client.set_registered_model_alias(name, self.config.alias, version.version)
                return f"models:/{name}/{version.version}", str(version.version)
        info = self._log_model(run_id, classifier, metadata)
        said = {"classifier": redact(classifier.url), **(tags or {})}
        version = str(self._create_version(name, run_id, info, said).version)
        self.client.set_registered_model_alias(name, self.config.alias, version)
        return f"models:/{name}/{version}", version

    def _log_model(self, run_id: str, classifier: Folder, metadata: dict[str, Any]) -> ModelInfo:
        card = classifier.read_json("classifier.json")
        package = Path(pyfunc.__file__).parent
        with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*input example was not provided")  # no file would exist elsewhere
            folder = Path(temporary) / pyfunc.CLASSIFIER
            for file in ("classifier.json", "model.safetensors"):
                classifier.download(file, folder / file)
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(package / "pyfunc.py"),
                    artifacts={pyfunc.CLASSIFIER: str(folder)},
                    code_paths=[str(package)],
                    pip_requirements=list(REQUIREMENTS),
                    signature=signature(card["class_names"]),
                    metadata={
                        **metadata,
                        "class_names": card["class_names"],
                        "labels": card["finetune"]["labels"],
                        "audio": card["audio"],
                    },
                )
        self.client.set_terminated(run_id, "RUNNING")
        return info

    def _create_version(self, name: str, run_id: str, info: ModelInfo, tags: dict[str, str]) -> ModelVersion:
        """A new version of the registered model; `log_model` could make it, but prints that it did."""
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(name, info.model_uri, run_id, tags, model_id=info.model_id)
        link = json.dumps([{"name": name, "version": version.version}])  # from the model's page to the version's
        self.client.set_logged_model_tags(info.model_id, {"mlflow.modelVersions": link})
        return version

    def _versions(self, name: str) -> list[Any]:
        try:
            return list(self.client.search_model_versions(f"name='{name}'"))
        except MlflowException:
            return []

    def version(self, alias: str) -> Version | None:
        """The version of the registered model that an alias names; None where there is none."""
        name = self.config.registered_model
        try:
            found = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        uri = f"models:/{name}/{found.version}"
        return Version(uri, str(found.version), found.tags.get("evaluation"), found.tags.get("model"))

    def set_alias(self, alias: str, version: Version) -> None:
        """Let an alias name a version."""
        self.client.set_registered_model_alias(self.config.registered_model, alias, version.number)

    def exists(self, model_uri: str) -> bool:
        """Whether the registry has the version that `models:/name/version` names."""
        _, name, version = model_uri.rsplit("/", 2)
        return any(str(found.version) == version for found in self._versions(name))

    def download_classifier(self, model_uri: str) -> str:
        """The local folder of a registered model's classifier; ValueError where there is none."""
        try:
            folder = Path(mlflow.artifacts.download_artifacts(model_uri))
        except (MlflowException, OSError) as error:
            raise ValueError(f"{redact(model_uri)} can't be read: {' '.join(redact(str(error)).split())}") from None
        found = [path.parent for path in (folder / "artifacts").rglob("classifier.json")]
        if not found:
            raise ValueError(f"{redact(model_uri)} holds no scene classifier (no classifier.json)")
        return str(found[0])


def signature(class_names: list[str]) -> ModelSignature:
    """A recording in; label, confidence, error and a probability per class out.

    The recording's column has no name, so that a list of paths will do, and any type, because MLflow knows no column
    of paths or bytes or waveforms: `pyfunc.source_of` says what is wrong with a value.
    """
    probabilities = [ColSpec("float", name) for name in class_names]
    first = [ColSpec("string", "scene_label", required=False), ColSpec("float", "confidence", required=False)]
    error = ColSpec("string", "error", required=False)
    return ModelSignature(Schema([ColSpec(AnyType())]), Schema([*first, error, *probabilities]))
