"""Muted recordings and windows over HTTP."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from raymae.config import ServeConfig
from raymae.inference.predictor import Predictor
from tests.support.audio_files import TINY_AUDIO
from tests.support.serving import ask, serving, write_small_classifier

RATE, CLIP = TINY_AUDIO.sample_rate, TINY_AUDIO.n_samples


def flac(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="FLAC")
    return buffer.getvalue()


def test_silence_is_named_and_the_rest_is_answered(tmp_path: Path) -> None:
    predictor = Predictor(write_small_classifier(tmp_path), threads=1)
    noise = 0.1 * np.random.default_rng(0).standard_normal(CLIP)
    with serving(predictor, ServeConfig(queue=4, batch=4)) as (port, _):
        status, answer, _ = ask(port, body=flac(np.zeros(3 * CLIP)))
        assert (status, answer) == (422, {"error": "silent"})
        status, answer, _ = ask(port, body=flac(np.concatenate([noise, np.zeros(CLIP), noise])))
        assert status == 200
    first, second, third = answer["windows"]
    assert second == {"start": round(CLIP / RATE, 3), "end": round(2 * CLIP / RATE, 3), "error": "silent"}
    assert first["probabilities"] == third["probabilities"] == answer["probabilities"]
