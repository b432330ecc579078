"""Waveforms given as arrays, to mono at a front end's rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from raymae.audio.decode import MAX_CHANNELS, MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, FloatArray, load
from raymae.audio.errors import AudioError

FULL_SCALE = {"float16": 1, "float32": 1, "float64": 1, "int16": 2**15, "int32": 2**31}
"""Full scale of a waveform by type."""


Source = str | Path | bytes | BinaryIO | tuple[NDArray[np.generic], int]
"""A path, an encoded file's bytes, an open file, or a waveform with its sample rate (`from_array`)."""


def read_waveform(source: Source, sample_rate: int, max_seconds: float | None = None) -> FloatArray:
    """The mono waveform (n_samples,) of a source at `sample_rate`.

    Raises AudioError for a source that can't be read, of it TooLongError for a file longer than `max_seconds`.
    """
    if isinstance(source, tuple):
        return from_array(*source, sample_rate)
    return load(source, sample_rate, max_seconds=max_seconds)


def from_array(given: Any, given_rate: int, sample_rate: int) -> FloatArray:
    """The mono waveform (n_samples,) at `sample_rate` of an array at another rate, Hz.

    The array is (n_samples,), (n_samples, channels) as soundfile gives it, or (channels, n_samples) as torchaudio does:
    channels, of which there are at most `MAX_CHANNELS` and always fewer than samples, are averaged, as those of a file.
    16 and 32 bit integers are divided by their full scale. Raises AudioError for anything else.
    """
    given = np.asarray(given)
    if given.dtype.name not in FULL_SCALE:
        raise AudioError(f"a waveform of {given.dtype.name}; valid: {', '.join(FULL_SCALE)}")
    waveform = _mono(given.astype(np.float32) / np.float32(FULL_SCALE[given.dtype.name]))
    if not len(waveform) or not np.isfinite(waveform).all():
        raise AudioError("a waveform has to be finite and not empty")
    if not MIN_SAMPLE_RATE <= given_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{given_rate} Hz is not a valid sample rate")
    if given_rate != sample_rate:
        waveform = soxr.resample(waveform, given_rate, sample_rate, quality="HQ")
    if not len(waveform):
        raise AudioError(f"too short: no sample at {sample_rate} Hz")
    return waveform


def _mono(waveform: FloatArray) -> FloatArray:
    """(n_samples,), or the mean over the channels of an array with two axes."""
    if waveform.ndim == 1:
        return waveform
    shape = waveform.shape
    if waveform.ndim != 2 or min(shape) == 0:
        raise AudioError(
            f"a waveform of shape {shape}; valid: (n_samples,), (n_samples, channels), (channels, n_samples)"
        )
    channels = min(shape)
    if channels > MAX_CHANNELS or max(shape) <= MAX_CHANNELS:
        raise AudioError(
            f"a waveform of shape {shape}: one axis has to be channels, at most {MAX_CHANNELS}, one samples"
        )
    by_channel = waveform if shape[0] == channels else waveform.T
    mean: FloatArray = sum(by_channel) / np.float32(channels)  # type: ignore[assignment]
    return mean
