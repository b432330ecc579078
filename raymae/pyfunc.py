"""The registered model: an MLflow pyfunc that MLflow loads from this file, with the front end inside."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

CLASSIFIER = "classifier"
"""Name of the artifact that holds the classifier folder."""


class SceneClassifier(PythonModel):
    """Audio files in, scene labels and probabilities out."""

    def load_context(self, context: Any) -> None:
        """Build the model from the artifact."""
        from raymae.predict import Predictor

        self.predictor = Predictor(context.artifacts[CLASSIFIER])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per file: scene_label, confidence, error, and a column of probabilities per class.

        Args:
            context: MLflow's.
            model_input: its first column holds paths of audio files; MLflow makes it of a list, too.
            params: none are known.
        """
        rows = [self.predictor.row(str(path)) for path in model_input.iloc[:, 0]]
        return pd.DataFrame(rows).drop(columns="path")


set_model(SceneClassifier())
