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

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per file: scene_label, confidence, error, and a column of probabilities per class.

        Args:
            model_input: a DataFrame with a column `path`, or a list of paths.
        """
        paths = model_input["path"] if isinstance(model_input, pd.DataFrame) else model_input
        rows = [self.predictor.row(str(path)) for path in paths]
        return pd.DataFrame(rows).drop(columns="path")


set_model(SceneClassifier())
