"""A corpus without stored features: every clip is decoded and featurized whenever it is read.

`prepare` has read every file once and stored lengths and moments of the good ones, so that clips, their order and the
quarantine are those of a feature store. The features are the same to the bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raymae.audio.clip_reader import ClipReader
from raymae.audio.errors import AudioError
from raymae.config import redact
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore

CHECKED = "artifacts/checked"
"""Folder of the shards without features."""
RETRIES = (1.0, 10.0)
"""Pauses before a file is read again, s: storage at a URL fails at times."""


@dataclass(frozen=True)
class StreamedClips(FeatureStore):
    """A feature store that computes its features when they are read; picklable."""

    timeout: float = 30.0
    """Time limit for one file, s."""

    @cached_property
    def _reader(self) -> ClipReader:
        return ClipReader(self.audio, self.timeout)

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Read log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order of `rows`.

        Raises ValueError that names a file that can't be read any more.
        """
        log_mel = np.empty((len(rows), self.audio.n_frames, self.audio.n_mels), np.float16)
        valid_frames = np.empty(len(rows), np.int32)
        for place, path in enumerate(self.clips["path"].take(rows).to_pylist()):
            log_mel[place], valid_frames[place] = self._read_clip(path)
        return log_mel, valid_frames

    def _read_clip(self, path: str) -> tuple[NDArray[np.float16], int]:
        for pause in RETRIES:
            try:
                return self._reader(path)[:2]
            except AudioError:
                time.sleep(pause)
        try:
            return self._reader(path)[:2]
        except AudioError as error:
            raise ValueError(
                f"{redact(path)} could be read when it was prepared but can't be read now: {error}; restore it and run "
                "the same command again, or remove it from the table"
            ) from None
