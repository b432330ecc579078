"""Mistakes that a report plays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from raymae.evaluation.report import mistakes
from raymae.evaluation.report.mistakes import RATE, SECONDS, read_samples
from tests.support.audio_files import TINY_AUDIO

LONG = 30.0
"""Seconds of the recording."""


@pytest.fixture
def listed(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """A recording with a tone in its second half alone, and one that is gone."""
    rate = 44_100
    time = np.arange(int(LONG * rate)) / rate
    soundfile.write(tmp_path / "a.wav", 0.01 * np.sin(2 * np.pi * 700 * time) * (time > LONG / 2), rate)
    about = {"true": "bus", "predicted": "tram", "device": "a", "city": None}
    there = about | {"path": str(tmp_path / "a.wav"), "start_seconds": 20.0, "end_seconds": None, "confidence": 0.7}
    return {
        "val": [there],
        "test": [there | {"confidence": 0.8}, there | {"path": str(tmp_path / "gone.wav"), "confidence": 0.9}],
    }


def test_what_is_played_is_the_clip(listed: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    first, second = read_samples(listed, 12, TINY_AUDIO, 30.0)
    assert "gone.wav is a mistake that the report can't play" in caplog.text
    assert (first.lines[0], second.lines[0]) == ("test, confidence 0.800", "val, confidence 0.700")
    assert first.lines[1:] == ["device a", f"{listed['val'][0]['path']} from 20 s"]
    assert first.picture.startswith(b"\x89PNG")
    waveform, rate = soundfile.read(io.BytesIO(first.audio))
    assert rate == RATE
    assert len(waveform) / rate == pytest.approx(min(SECONDS, TINY_AUDIO.clip_seconds), abs=0.2)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert spectrum.argmax() * rate / len(waveform) == pytest.approx(700, abs=10)
    assert 0.5 < np.abs(waveform).max() <= 1


def test_there_are_few_and_they_are_small(listed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [sample.lines[0] for sample in read_samples(listed, 1, TINY_AUDIO, 30.0)] == ["test, confidence 0.800"]
    assert read_samples(listed, 0, TINY_AUDIO, 30.0) == []
    size = sum(len(one.picture) + len(one.audio) for one in read_samples(listed, 1, TINY_AUDIO, 30.0))
    monkeypatch.setattr(mistakes, "MOST_BYTES", 1.5 * size)
    assert len(read_samples(listed, 12, TINY_AUDIO, 30.0)) == 1
