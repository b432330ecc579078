"""The scenes of a recording are stretches of neighbouring windows with the same label, which cover it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymae.inference.predictor import Predictor
from raymae.inference.windowed import Window
from raymae.serving.http.scenes import scenes
from tests.support.serving import NAMES, write_small_classifier

VALUES = st.none() | st.lists(st.floats(0, 1, width=32), min_size=len(NAMES), max_size=len(NAMES))


@pytest.fixture(scope="module", params=["single", "multi"])
def predictor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_small_classifier(tmp_path_factory.mktemp("classifier"), request.param), threads=1)


@given(values=st.lists(VALUES, min_size=1, max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scenes_cover_the_windows_and_neighbours_differ(predictor: Predictor, values: list[list[float] | None]) -> None:
    windows: list[Window] = [
        (number, number + 1.0, None if value is None else np.array(value, np.float32))
        for number, value in enumerate(values)
    ]
    found = scenes(predictor, windows)
    assert found[0]["start"] == 0
    assert [one["end"] for one in found[:-1]] == [one["start"] for one in found[1:]]
    assert found[-1]["end"] == len(values)
    labels = [set(one.get("scene_label", "").split(";")) for one in found]
    assert all(one != other for one, other in pairwise(labels))
    for start, end, value in windows:
        inside = next(one for one in found if one["start"] <= start < one["end"])
        assert end <= inside["end"]
        if value is None:
            assert inside["error"] == "silent"
        elif predictor.classifier.finetune.labels == "single":
            assert inside["scene_label"] == predictor.label(value)[0]


def test_the_confidence_is_that_of_the_stretch(tmp_path: Path) -> None:
    predictor = Predictor(write_small_classifier(tmp_path), threads=1)
    first, other = np.array([0.9, 0.1, 0, 0]), np.array([0.1, 0.8, 0.1, 0])
    windows: list[Window] = [(0, 2, first), (2, 4, first - [0.2, -0.2, 0, 0]), (4, 5, other), (5, 6, None)]
    assert scenes(predictor, windows) == [
        {"start": 0, "end": 4, "scene_label": NAMES[0], "confidence": 0.8},
        {"start": 4, "end": 5, "scene_label": NAMES[1], "confidence": 0.8},
        {"start": 5, "end": 6, "error": "silent"},
    ]
