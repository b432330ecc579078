"""The log-mel of a whole recording as a small image."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from raymae.audio.decode import FloatArray
from raymae.audio.logmel import band_centres
from raymae.config import AudioConfig
from raymae.inference.windowed import Clip

COLUMNS = 800
RANGE_DB = 80
"""Range below the loudest value of the recording, dB; quieter values are drawn like its lower end."""
_DB = 10 / np.log(10)


class Spectrogram:
    """Collects the clips of a recording of `n_samples` into at most `COLUMNS` columns."""

    def __init__(self, audio: AudioConfig, n_samples: int) -> None:
        self.audio = audio
        self.columns = min(COLUMNS, audio.frames(n_samples))
        self.per_second = self.columns * audio.sample_rate / n_samples
        self.parts: list[FloatArray] = []

    def add(self, clip: Clip) -> None:
        """Add the next clip: the mean log-mel of the frames of each of its columns."""
        columns = max(1, round(clip.end * self.per_second) - round(clip.start * self.per_second))
        edges = np.linspace(0, clip.valid_frames, columns, endpoint=False).astype(int)
        counts = np.maximum(1, np.diff(edges, append=clip.valid_frames))
        sums = np.add.reduceat(clip.log_mel[: clip.valid_frames], edges)
        self.parts.append(np.asarray(sums / counts[:, None], np.float32))

    def to_json(self) -> dict[str, Any]:
        """`columns`, `bands`; `hertz`, the centre of each band; `range_db`; `values`, base64 of (bands, columns) bytes,
        the lowest band first: 255 is the loudest value of the recording, 0 is `range_db` or more below it."""
        log_mel = np.concatenate(self.parts).T
        decibels = _DB * self.audio.norm_scale * (log_mel - log_mel.max())
        values = np.round(255 * np.clip(1 + decibels / RANGE_DB, 0, 1)).astype(np.uint8)
        return {
            "columns": values.shape[1],
            "bands": values.shape[0],
            "hertz": [round(float(hertz), 1) for hertz in band_centres(self.audio)],
            "range_db": RANGE_DB,
            "values": base64.b64encode(values.tobytes()).decode(),
        }
