"""MLflow's model registry: versions of a classifier, their files, tags and aliases."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import AnyType, ColSpec, Schema

import raymae
from raymae.config import TrackingConfig, nearest, redact
from raymae.datasets.labels import probability_columns
from raymae.evaluation.cards.model_card import CARD
from raymae.storage.folder import Folder
from raymae.tracking import pyfunc_model

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
"""The requirements of the registered model, beside the package itself, which is logged with it."""

DESCRIPTION = (
    "Maps recordings, each a path, an encoded file's bytes or a waveform with its sample rate, to the acoustic scene, "
    "its probability and the probability of every class."
)
MOST_CHARACTERS = 5000
"""Of a version's description: the column of MLflow's database."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    uri: str
    number: str
    evaluation: str | None
    """The key of its evaluation."""
    model: str | None
    """The model's name in that evaluation."""


class Registry:
    """The registered model of an MLflow server; base class of `Tracker`."""

    config: TrackingConfig
    client: MlflowClient
    uri: str
    experiment_id: str

    def _check_names(self) -> None:
        """Ask for the model, so that an unusable name or alias is an error now and not after the training."""
        try:
            self.client.get_model_version_by_alias(self.config.registered_model, self.config.alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def register(
        self,
        run_id: str,
        classifier: Folder,
        metadata: dict[str, Any],
        tags: dict[str, str] | None = None,
        description: str | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        """Log the classifier as a model of the run, register it and move the alias; its URI and version.

        If the same run has registered the same classifier, that version is kept. `tags` and the `description`, in
        Markdown, are set on the version; `version` reads evaluation (the key of its evaluation) and model (the model's
        name in it). `beside` are further files of the classifier's folder, by name; without a description, a model card
        (`model_card.CARD`) among them is the description.
        """
        name = self.config.registered_model
        for version in self._versions(name):
            if version.run_id == run_id and version.tags.get("classifier") == redact(classifier.url):
                self.client.set_registered_model_alias(name, self.config.alias, version.version)
                return f"models:/{name}/{version.version}", str(version.version)
        source = {"classifier": redact(classifier.url)}
        tags = {clean(key): value for key, value in (tags or {}).items()}
        model_uri, model_id = self._logged(run_id, source) or self._log_model(
            run_id, classifier, metadata, source, beside or {}
        )
        description = description or without_metadata((beside or {}).get(CARD, "")) or None
        version = str(self._create_version(run_id, model_uri, model_id, source | tags, description).version)
        self.client.set_registered_model_alias(name, self.config.alias, version)
        return f"models:/{name}/{version}", version

    def _logged(self, run_id: str, tags: dict[str, str]) -> tuple[str, str] | None:
        """URI and id of the model with these tags that a run has logged already; incomplete ones are removed."""
        for model in self.client.search_logged_models([self.experiment_id], f"source_run_id = '{run_id}'"):
            if tags.items() <= model.tags.items():
                if model.status == LoggedModelStatus.READY:
                    return str(model.model_uri), str(model.model_id)
                self.client.delete_logged_model(model.model_id)
        return None

    def _log_model(
        self,
        run_id: str,
        classifier: Folder,
        metadata: dict[str, Any],
        tags: dict[str, str],
        beside: Mapping[str, str],
    ) -> tuple[str, str]:
        card = classifier.read_json("classifier.json")
        package = Path(raymae.__file__).parent
        with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Operation with range is deprecated")  # MLflow's, of an example's columns
            folder = Path(temporary) / pyfunc_model.CLASSIFIER
            for file in ("classifier.json", "model.safetensors"):
                classifier.download(file, folder / file)
            for file, content in beside.items():
                (folder / file).write_text(content)
            # MLflow writes a model through the process's one address, and another tracker may have set its own
            mlflow.set_tracking_uri(self.uri)
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=pyfunc_model.__file__,
                    artifacts={pyfunc_model.CLASSIFIER: str(folder)},
                    code_paths=[str(package)],
                    pip_requirements=list(REQUIREMENTS),
                    signature=signature(card["class_names"]),
                    input_example=input_example(),
                    tags=tags,
                    metadata={
                        **metadata,
                        "class_names": card["class_names"],
                        "labels": card["finetune"]["labels"],
                        "audio": card["audio"],
                    },
                )
        self.client.set_terminated(run_id, "RUNNING")
        return str(info.model_uri), str(info.model_id)

    def _create_version(
        self, run_id: str, model_uri: str, model_id: str, tags: dict[str, str], description: str | None
    ) -> ModelVersion:
        """Create a version of the registered model; `log_model` could, but prints a line."""
        name = self.config.registered_model
        try:
            self.client.create_registered_model(name, description=DESCRIPTION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            name, model_uri, run_id, tags, description=description, model_id=model_id
        )
        link = json.dumps([{"name": name, "version": version.version}])  # from the model's page to the version's
        self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
        return version

    def _versions(self, name: str) -> list[Any]:
        return list(self.client.search_model_versions(f"name='{name}'"))

    def version(self, alias: str) -> Version | None:
        """The version of the registered model that an alias names, if any."""
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
        """Move an alias to a version."""
        self.client.set_registered_model_alias(self.config.registered_model, alias, version.number)

    def exists(self, model_uri: str) -> bool:
        """Whether the registry has the version of a URI `models:/name/version`."""
        _, name, version = model_uri.rsplit("/", 2)
        return any(str(found.version) == version for found in self._versions(name))

    def download_classifier(self, model_uri: str) -> str:
        """Download a registered classifier to a local folder; ValueError if it can't be read or isn't a classifier."""
        try:
            folder = Path(mlflow.artifacts.download_artifacts(model_uri))
        except (MlflowException, OSError) as error:
            said = " ".join(redact(str(error)).split())
            reason = self.missing(model_uri) or f"{said} (asked: the registry {redact(self.uri)})"
            raise ValueError(f"{redact(model_uri)} can't be read: {reason}") from None
        found = [path.parent for path in (folder / "artifacts").rglob("classifier.json")]
        if not found:
            raise ValueError(f"{redact(model_uri)} holds no scene classifier (no classifier.json)")
        return str(found[0])

    def missing(self, model_uri: str) -> str | None:
        """What the registry has in place of a model, version or alias that it hasn't; None where it has it."""
        found = re.fullmatch(r"models:/([^/@]+)(?:/(.+)|@(.+))?", model_uri)
        if not found:
            return None
        name, version, alias = found.groups()
        try:
            models = {one.name: one for one in self.client.search_registered_models()}
        except MlflowException:  # a server that can't be asked has said so already
            return None
        where = f"the registry {redact(self.uri)}"
        if name not in models:
            return f"{where} has no model {name}{nearest(name, models)}; it has {', '.join(models) or 'none'}"
        if alias is not None and alias not in models[name].aliases:
            known = sorted(models[name].aliases)
            return f"{where} has no {name}@{alias}{nearest(alias, known)}; its aliases: {', '.join(known) or 'none'}"
        versions = sorted(int(one.version) for one in self._versions(name))
        if version is not None and version not in map(str, versions):
            return f"{where} has no version {version} of {name}; it has {', '.join(map(str, versions)) or 'none'}"
        return None


def without_metadata(card: str) -> str:
    """A model card without what is before its title, as short as MLflow takes a description."""
    return card.partition("\n---\n")[2].strip()[:MOST_CHARACTERS]


def clean(name: str) -> str:
    """A name that MLflow accepts: characters that it refuses, such as an apostrophe, become underscores."""
    return re.sub(r"[^\w\-. /]", "_", name)


def signature(class_names: list[str]) -> ModelSignature:
    """The signature: a recording in; label, confidence, error and the probability of every class in `p_<class>` out.

    The input column has no name, so that a list of paths is accepted, and type any, because MLflow has no type for
    paths, bytes or waveforms: `pyfunc_model.source_of` checks the values.
    """
    probabilities = [ColSpec("float", name) for name in probability_columns(class_names)]
    first = [ColSpec("string", "scene_label", required=False), ColSpec("float", "confidence", required=False)]
    error = ColSpec("string", "error", required=False)
    return ModelSignature(Schema([ColSpec(AnyType())]), Schema([*first, error, *probabilities]))


def input_example() -> pd.DataFrame:
    """A recording in the form that JSON can hold, a second of a 440 Hz tone: a path would exist nowhere else."""
    rate = 2000
    waveform = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    given = {"waveform": waveform.round(3).tolist(), "sample_rate": rate}
    return pd.DataFrame({"recording": pd.Series([given])})
