"""A recording to try the server with, of several scenes, made by synthesis: it proves nothing about real ones."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import soundfile

from raymae.config import ServeConfig
from raymae.datasets.synthetic.recording_session import Session
from raymae.datasets.synthetic.scenes import CITIES, SCENES, City, Device, generator

PARTS = ("bus", "park", "restaurant")
RATE = 16_000
SECONDS = 30.0
HEADER_BYTES = 64


def sample(settings: ServeConfig) -> bytes:
    """A WAV file of 30 s, or as long as the limits of the server allow."""
    seconds = min(SECONDS, 60 * settings.max_minutes, (settings.max_bytes - HEADER_BYTES) / (2 * RATE))
    return _written(int(seconds * RATE) // len(PARTS))


@cache
def _written(n_samples: int) -> bytes:
    """Sessions in a city, one after the other, each `n_samples` long."""
    city, device = City.draw(0, CITIES[0]), Device.draw(0, "a")
    parts = []
    for name in PARTS:
        rng = generator(0, f"sample {name}")
        session = Session.draw(rng, name, SCENES[name], city, device, RATE)
        clips = [np.zeros(0, np.float32)]
        while sum(map(len, clips)) < n_samples:
            clips.append(session.clip(rng))
        parts.append(np.concatenate(clips)[:n_samples])
    buffer = io.BytesIO()
    soundfile.write(buffer, np.concatenate(parts), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
