"""A corpus whose features are not kept: every clip is decoded and featurized whenever it is read.

`prepare` has read every file once and kept the good ones' lengths and moments, so that the clips, their order and the
quarantine are those of a feature store, and what is read is the same to the bit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import AudioError
from raymae.config import redact
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore

CHECKED = "artifacts/checked"
"""Where the shards without features lie."""
RETRIES = (1.0, 10.0)
"""Seconds before a file is tried again: storage at a URL fails at times."""


@dataclass(frozen=True)
class StreamedClips(FeatureStore):
    """Reads like a feature store; picklable."""

    timeout: float = 30.0
    """Seconds after which the decoding of one file is given up."""

    @cached_property
    def _reader(self) -> ClipReader:
        return ClipReader(self.audio, self.timeout)

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """The log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order asked for.

        ValueError names a file that can't be read any more.
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
                f"{redact(path)} could be read when it was prepared and can't be now: {error}; mend it and give the "
                "same command again, or take it out of the table"
            ) from None
