"""The output of the registered model: no class collides with another column, whatever its name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest

from raymae.inference.labeller import Labeller
from raymae.inference.predictor import Predictor
from raymae.serving.output import open_output
from raymae.storage.folder import Folder
from raymae.tracking.pyfunc_model import CLASSIFIER, SceneClassifier
from raymae.tracking.registry import signature
from tests.support.audio_files import encoded, write_tone
from tests.support.classifiers import write_tiny

NAMES = ["confidence", "error", "p_error", "path", "scene_label", "start_seconds"]
P = [f"p_{name}" for name in NAMES]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(Folder(str(tmp_path_factory.mktemp("classifier"))), NAMES).url


def test_the_model_s_columns_are_those_of_its_signature(classifier: str) -> None:
    model = SceneClassifier()
    model.load_context(SimpleNamespace(artifacts={CLASSIFIER: classifier}))
    found = model.predict(None, pd.DataFrame({"x": pd.Series([encoded(), b"no audio"], dtype=object)}))
    assert list(found.columns) == signature(NAMES).outputs.input_names() == ["scene_label", "confidence", "error", *P]
    assert found.columns.is_unique
    assert found[P].iloc[0].sum() == pytest.approx(1, abs=1e-5)
    assert found[P].iloc[0].idxmax() == f"p_{found['scene_label'][0]}"
    assert found["error"][1]
    assert found[P].iloc[1].isna().all()


@pytest.mark.parametrize("level", ["file", "window"])
def test_the_csv_of_predict_keeps_path_label_and_error(classifier: str, tmp_path: Path, level: str) -> None:
    paths = [str(tmp_path / "a.wav"), str(tmp_path / "gone.wav")]
    write_tone(tmp_path / "a.wav", 440)
    table = Labeller(Predictor(classifier, threads=1), level, 1)(paths)  # type: ignore[arg-type]
    open_output("--o", str(tmp_path / "out.csv")).write([table], table.schema)
    found = pa.csv.read_csv(tmp_path / "out.csv")
    assert len(set(found.column_names)) == len(found.column_names)
    assert found["path"].to_pylist() == paths
    assert found["scene_label"].to_pylist()[0] in NAMES
    assert found["error"].to_pylist() == ["", "No such file or directory"]
    assert sum(found[name][0].as_py() for name in P) == pytest.approx(1, abs=1e-5)
