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

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        """One row per file: scene_label, confidence, error, and a column of probabilities per class.

        Args:
            model_input: paths of audio files: a list, or a DataFrame whose first column holds them.
        """
        paths = model_input.iloc[:, 0] if isinstance(model_input, pd.DataFrame) else model_input
        rows = [self.predictor.row(str(path)) for path in paths]
        return pd.DataFrame(rows).drop(columns="path")


set_model(SceneClassifier())
