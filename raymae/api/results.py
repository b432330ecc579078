"""What the functions of the API return: predictions and embeddings of recordings, and finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.config import LabelLevel
from raymae.datasets.labels import probability_columns
from raymae.storage.events import committed_events
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.api.models import LoadedClassifier, LoadedEncoder


@dataclass(frozen=True, kw_only=True, repr=False)
class Framed:
    """A result with a table."""

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas DataFrame."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self.to_frame())

    def _repr_html_(self) -> str:
        """The table, as notebooks show it."""
        return str(self.to_frame().to_html(max_rows=20))


@dataclass(frozen=True, kw_only=True, repr=False)
class Predictions(Framed):
    """Class probabilities of recordings, or of their windows."""

    class_names: tuple[str, ...]
    table: pa.Table
    """As jobs/predict.py writes it: path (null for arrays and bytes), with level window start_seconds and end_seconds,
    scene_label, confidence, error, and p_<class>."""

    def to_frame(self) -> pd.DataFrame:
        """The table: a row for each recording or window, with its reason in `error` where there is no prediction."""
        return self.table.to_pandas()

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(n, C), NaN in rows with an error."""
        columns = [self.table[name].to_numpy(zero_copy_only=False) for name in probability_columns(self.class_names)]
        return np.stack(columns, axis=1).astype(np.float32)

    @property
    def labels(self) -> list[str | None]:
        """The predicted labels (n,), None in rows with an error."""
        return list(self.table["scene_label"].to_pylist())


@dataclass(frozen=True, kw_only=True, repr=False)
class Embeddings(Framed):
    """Vectors of recordings, or of their windows."""

    vectors: NDArray[np.float32]
    """(n, E), NaN in rows with an error."""
    rows: pd.DataFrame
    """path (None for arrays and bytes), with level window start_seconds and end_seconds, and error."""

    def to_frame(self) -> pd.DataFrame:
        """A row for each recording or window, its vector in the column `embedding`."""
        return self.rows.assign(embedding=list(self.vectors))


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


def embeddings_of(names: Sequence[str | None], found: Sequence[Any], level: LabelLevel) -> Embeddings:
    """The result of recordings from the rows (start, end, vector or None, error or None) of each."""
    rows, vectors = [], []
    for name, some in zip(names, found, strict=True):
        for start, end, vector, error in some:
            times = {"start_seconds": start, "end_seconds": end} if level == "window" else {}
            rows.append({"path": name, **times, "error": error})
            vectors.append(vector)
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    missing = np.full(width, np.nan, np.float32)
    stacked = np.stack([missing if vector is None else vector for vector in vectors]) if vectors else np.zeros((0, 0))
    return Embeddings(vectors=stacked.astype(np.float32), rows=pd.DataFrame(rows))
