"""Finished runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq

from raymae.storage.events import committed_events
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.api.models import LoadedClassifier, LoadedEncoder


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished job: its stages, their models, curves and scores."""

    result: dict[str, Any] = field(repr=False)
    """What `--json` of the job writes."""
    storage: Folder = field(repr=False)
    folder: str
    """Folder or URL of the run: its settings, split and result."""
    model: str
    """Folder or URL of the model that it ends with: an encoder after pre-training, else a classifier."""
    model_uri: str | None = None
    """The registered model, models:/<name>/<version>."""

    @property
    def stages(self) -> dict[str, str]:
        """Folder or URL of every stage's artifact."""
        return {name: self.artifact(name).url for name in self.result["stages"]}

    def artifact(self, stage: str) -> Folder:
        """The artifact of a stage; ValueError where the run has no such stage."""
        return stage_folder(self.result, self.storage, stage)

    @property
    def metrics(self) -> dict[str, Any]:
        """Model → split → scores; empty for a job that doesn't evaluate."""
        return dict(self.result.get("metrics", {}))

    def scores(self) -> pd.DataFrame:
        """A row for each model and held-out split: clips, groups and the scores that are one number, with intervals."""
        rows = [
            {"model": model, "split": split} | {name: one for name, one in values.items() if is_score(name, one)}
            for model, splits in self.metrics.items()
            for split, values in splits.items()
        ]
        return pd.DataFrame(rows, columns=None if rows else ["model", "split"])

    def history(self, stage: str | None = None) -> pd.DataFrame:
        """The reported steps of a training stage, a column for each metric; by default of the model's own stage."""
        artifact = Folder(self.model) if stage is None else self.artifact(stage)
        events = committed_events(artifact)
        return pd.DataFrame([{"step": one["step"], "time": one["time"], **one["metrics"]} for one in events])

    def predictions(self, model: str | None = None) -> pd.DataFrame:
        """The held-out recordings with the class probabilities of an evaluated model; by default of the final one."""
        name = model or list(self.metrics)[-1]
        with self.artifact("evaluate").open(f"predictions/{name}.parquet") as file:
            return pq.read_table(file).to_pandas()

    def load(self, device: str | None = None) -> LoadedEncoder | LoadedClassifier:
        """The model that it ends with, as `load_encoder` or `load_classifier` gives it."""
        from raymae.api.models import load_classifier, load_encoder

        is_classifier = Folder(self.model).exists("classifier.json")
        return load_classifier(self.model, device=device) if is_classifier else load_encoder(self.model, device=device)


def is_score(name: str, value: Any) -> bool:
    """Whether an entry of a split's scores is a number, or the interval of one."""
    return value is None or isinstance(value, int | float) or name.endswith("_ci")


def stage_folder(result: dict[str, Any], storage: Folder, stage: str) -> Folder:
    """The artifact of a stage: in the result of a job its URL is without credentials."""
    if stage not in result["stages"]:
        raise ValueError(f"the run has no stage {stage!r}; it has {', '.join(result['stages'])}")
    return storage / "/".join(result["stages"][stage]["folder"].split("/")[-3:])


def run_of(result: dict[str, Any], storage: Folder, target: str) -> Run:
    """A run from the result of its job, which ends with the stage `target`."""
    final = list(result["metrics"])[-1] if "metrics" in result else target
    return Run(
        result=result,
        storage=storage,
        folder=(storage / "/".join(result["run_folder"].split("/")[-2:])).url,
        model=stage_folder(result, storage, final).url,
        model_uri=result.get("model_uri"),
    )
