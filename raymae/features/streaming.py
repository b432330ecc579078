"""A corpus without stored features: every clip is decoded and featurized whenever it is read.

`prepare` has read every file once and stored lengths and moments of the good ones, so that clips, their order and the
quarantine are those of a feature store. The features are the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.audio.spans import Span
from raymae.config import redact
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore, Layout
from raymae.features.write import runs_of, spans_of

if TYPE_CHECKING:
    from raymae.audio.clip_reader import ClipReader, WaveformReader

CHECKED = "artifacts/checked"
"""Folder of the shards without features."""
PLACE = ("path", "start_seconds", "end_seconds")
RETRIES = (1.0, 10.0)
"""Pauses before a file is read again, s: storage at a URL fails at times."""


@dataclass(frozen=True)
class StreamedClips(FeatureStore):
    """A feature store that computes its features when they are read; picklable."""

    timeout: float = 30.0
    """Time limit for one file, s."""

    @cached_property
    def _reader(self) -> ClipReader:
        from raymae.audio.clip_reader import ClipReader

        return ClipReader(self.audio, self.timeout)

    def read(self, rows: Rows) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Read log-mels (n, T, F) float16 and valid frames (n,) of some rows, in the order of `rows`.

        Raises ValueError that names a file that can't be read any more.
        """
        log_mel = np.empty((len(rows), self.audio.n_frames, self.audio.n_mels), np.float16)
        return log_mel, self._fill(log_mel, rows, self._reader)

    def _fill(self, target: NDArray[Any], rows: Rows, reader: ClipReader) -> NDArray[np.int32]:
        """Read some rows into `target`, the beginning of each clip's own; how much of it that is, (n,)."""
        valid = np.empty(len(rows), np.int32)
        clips = self.clips.select([name for name in PLACE if name in self.clips.column_names]).take(rows)
        paths, spans = clips["path"].to_pylist(), spans_of(clips)
        for run in ascending(paths, spans):
            found = self._read_run(paths[run.start], spans[run.start : run.stop], reader)
            for place, (values, count, _) in zip(run, found, strict=True):
                target[place, : len(values)], valid[place] = values, count
        return valid

    def _read_run(self, path: str, spans: Sequence[Span], reader: ClipReader) -> list[Any]:
        for pause in (*RETRIES, None):
            answers = list(reader.each(path, spans))
            errors = [answer for answer in answers if isinstance(answer, AudioError)]
            if not errors:
                break
            if pause is None:
                raise ValueError(
                    f"{redact(path)} could be read when it was prepared but can't be read now: {errors[0]}; restore it "
                    "and run the same command again, or remove it from the table"
                )
            time.sleep(pause)
        return [answer for answer in answers if not isinstance(answer, AudioError)]


@dataclass(frozen=True)
class WaveformClips(StreamedClips):
    """Streamed clips of which training reads the waveforms, to make log-mels on its device; all others read log-mels.

    Data workers decode and resample alone. A clip of ten seconds is 1.28 MB instead of 0.33 MB at the default front
    end.
    """

    @cached_property
    def _waveforms(self) -> WaveformReader:
        from raymae.audio.clip_reader import WaveformReader

        return WaveformReader(self.audio, self.timeout)

    @property
    def layout(self) -> Layout:
        """Samples, with zeros after the end of a shorter clip."""
        return Layout((self.audio.n_samples,), np.float32, self.audio.hop_length, 0.0)

    def read_for_training(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Read waveforms (n, samples) float32 and valid samples (n,) of some rows, in the order of `rows`."""
        waveforms = np.zeros((len(rows), *self.layout.shape), np.float32)
        return waveforms, self._fill(waveforms, rows, self._waveforms)


def ascending(paths: Sequence[str], spans: Sequence[Span]) -> Iterator[range]:
    """The runs of neighbouring parts of one recording whose order is that of time, which are read in one go."""
    for run in runs_of(paths):
        start = run.start
        for place in range(run.start + 1, run.stop + 1):
            if place == run.stop or (spans[place][0] or 0) <= (spans[place - 1][0] or 0):
                yield range(start, place)
                start = place
