"""Predictions of recordings in odd formats: a row with probabilities, or one that says why there are none."""

from pathlib import Path

import pytest

from raymae.inference.predictor import Predictor
from raymae.storage.folder import Folder
from tests.support.classifiers import write_tiny
from tests.support.format_cases import CASES


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_tiny(Folder(str(tmp_path_factory.mktemp("classifier"))), ["a", "b"]))


@pytest.mark.parametrize("name", CASES)
def test_each_format_has_its_row(name: str, predictor: Predictor, tmp_path: Path) -> None:
    make, right = CASES[name]
    good, odd = tmp_path / "good.wav", tmp_path / name
    good.write_bytes(CASES["ffmpeg_pipe.wav"][0]())
    odd.write_bytes(make())
    before, row, after = predictor.rows([str(good), str(odd), str(good)])
    assert before == after
    assert before["error"] is None
    if isinstance(right, float):
        assert row["error"] is None
        assert row["scene_label"] in ("a", "b")
    else:
        assert row["error"].startswith(right)
        assert row["scene_label"] is None
