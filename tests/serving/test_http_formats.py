"""Recordings in odd formats over HTTP: an answer of their whole length, or a status with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from tests.support.format_cases import CASES
from tests.support.serving import ask, serving, write_small_classifier


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    predictor = Predictor(write_small_classifier(tmp_path_factory.mktemp("classifier")), threads=1)
    with serving(predictor, ServeConfig(queue=4, batch=8)) as (port, _):
        yield port


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_answered(port: int, name: str) -> None:
    make, right = CASES[name]
    status, answer, _ = ask(port, make())
    if isinstance(right, str):
        assert status == 400
        assert answer["error"].startswith(right)
    else:
        assert status == 200
        assert answer["duration"] == pytest.approx(right, abs=0.05)
        assert answer["windows"][-1]["end"] == pytest.approx(right, abs=0.1)
