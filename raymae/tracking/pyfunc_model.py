"""The registered model: an MLflow pyfunc, loaded from this file, that takes recordings and includes the front end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CLASSIFIER = "classifier"
"""Name of the artifact that holds the classifier folder."""
EXPECTED = (
    "the path of an audio file, its bytes, a pair (waveform, sample_rate) or "
    "{'waveform': …, 'sample_rate': …}; pairs in a pandas.Series, because a bare list of them becomes two columns"
)


class SceneClassifier(PythonModel):
    """Maps recordings to scene labels and probabilities."""

    def load_context(self, context: Any) -> None:
        """Build the model from the artifact."""
        from raymae.datasets.labels import probability_columns
        from raymae.inference.predictor import Predictor

        self.predictor = Predictor(context.artifacts[CLASSIFIER])
        self.columns = ["scene_label", "confidence", "error", *probability_columns(self.predictor.class_names)]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per recording: scene_label, confidence, error, and the probability of every class in `p_<class>`.

        Args:
            context: MLflow's.
            model_input: its first column holds recordings, each as `source_of` takes it; MLflow also makes it from a
                list of paths or bytes and from a pandas.Series.
            params: not used.

        Raises:
            ValueError: a row holds something else. If a recording can't be read, its row's `error` has the reason.
        """
        column = model_input.iloc[:, 0]
        sources = [source_of(value, row) for row, value in enumerate(column)]
        return pd.DataFrame(list(self.predictor.rows(sources)), columns=self.columns, index=model_input.index)


def source_of(value: Any, row: int) -> Any:
    """The Predictor's input for a path (text), a file's bytes, a pair (waveform (n_samples,), sample_rate) or a mapping
    with these two; for anything else a ValueError names the row."""
    if isinstance(value, Mapping) and set(value) == {"waveform", "sample_rate"}:
        value = value["waveform"], value["sample_rate"]
    if isinstance(value, tuple | list) and len(value) == 2 and np.ndim(value[0]) == 1 and is_rate(value[1]):
        return np.asarray(value[0]), int(value[1])
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    bare = isinstance(value, np.ndarray | list)
    found = "a waveform without its sample rate" if bare else f"{type(value).__name__} {str(value)[:40]!r}"
    raise ValueError(f"row {row} holds {found}; expected {EXPECTED}")


def is_rate(value: Any) -> bool:
    """Whether a value is a whole number, as sample rates are."""
    return isinstance(value, int | float | np.integer | np.floating) and float(value).is_integer()


set_model(SceneClassifier())
