"""The registered model: an MLflow pyfunc, loaded from this file, that takes recordings and includes the front end."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from raymae.inference.sources import source_of

CLASSIFIER = "classifier"
"""Name of the artifact that holds the classifier folder."""
HINT = "; pairs in a pandas.Series, because a bare list of them becomes two columns"


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
        sources = [source_of(value, row, HINT) for row, value in enumerate(column)]
        return pd.DataFrame(list(self.predictor.rows(sources)), columns=self.columns, index=model_input.index)


set_model(SceneClassifier())
