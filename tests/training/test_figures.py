"""Figures drawn while a stage runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymae.features.store import FeatureStore
from raymae.storage.events import read_events, write_event
from raymae.storage.folder import Folder
from raymae.training import figures
from raymae.training.figures import CURVES, FigureWriter
from tests.support.training import TINY, make_spec, train

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _at_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DRAW_SECONDS", 0.0)


def test_drawing_at_marks_changes_no_weights(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0))
    spec = make_spec(store, tmp_path / "drawn", config=config)
    drawn = train(spec)
    events = [event for event in read_events(spec.artifact) if "figures" in event]
    assert 3 <= len(events) <= 9
    for event in events:
        assert event["figures"] == [f"figures/reconstruction-{event['step']:09d}.png", CURVES]
        assert all(spec.artifact.read_bytes(file).startswith(PNG) for file in event["figures"])
    monkeypatch.setattr(figures, "DRAW_SECONDS", 1e9)
    plain = make_spec(store, tmp_path / "plain", config=config)
    for name, value in train(plain).items():
        assert (value == drawn[name]).all(), name
    assert (plain.artifact / "figures").names() == []


def test_the_curves_have_every_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    real = figures.learning_curves

    def watched(events, title):
        drawn.append([event["step"] for event in events])
        return real(events, title)

    monkeypatch.setattr(figures, "learning_curves", watched)
    artifact = Folder(str(tmp_path))
    for step in (1, 2, 3, 8, 9):  # 8 and 9 are from before a crash
        write_event(artifact, {"step": step, "time": 0.0, "metrics": {"loss": 1.0}})
    writer = FigureWriter(artifact, "pretrain")
    for step in (4, 6):
        event = {"step": step, "time": 0.0, "metrics": {"loss": 0.5}}
        writer.draw(event, {})
        write_event(artifact, event)
    assert drawn == [[1, 2, 3, 4], [1, 2, 3, 4, 6]]
