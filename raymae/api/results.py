"""Predictions and embeddings of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from raymae.config import LabelLevel
from raymae.datasets.labels import probability_columns


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
