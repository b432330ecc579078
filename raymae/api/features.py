"""Log-mels of recordings; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymae.audio.decode import FloatArray
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.audio.sources import open_clip
from raymae.audio.waveform import read_waveform
from raymae.config import FRONT_ENDS, AudioConfig, changed, nearest, typed
from raymae.inference.sources import source_of

FrontEnd = str | AudioConfig | Mapping[str, Any]
"""A front end by its name in `raymae.config.FRONT_ENDS`, its settings, or those that differ from the paper's."""


def log_mel(recording: Any, front_end: FrontEnd = "paper") -> FloatArray:
    """The normalised log-mel (T, F) of a whole recording, time first.

    Args:
        recording: a path or URL, the bytes of an encoded file, or a pair (waveform, sample_rate), the waveform as
            `raymae.audio.waveform.from_array` takes it.
        front_end: its name in `raymae.config.FRONT_ENDS`, its settings (a model's are its `audio`), or those that
            differ from the paper's, such as {"n_mels": 64}.

    Raises:
        ValueError: a recording that can't be read, with its path.
    """
    config, source = front_end_of(front_end), source_of(recording, 0)
    try:
        given = open_clip(source) if isinstance(source, str) else source
        waveform = read_waveform(given, config.sample_rate)
    except AudioError as error:
        raise ValueError(f"{source}: {error}" if isinstance(source, str) else str(error)) from None
    return LogMel(config)(waveform)


def front_end_of(given: FrontEnd) -> AudioConfig:
    """The settings of a front end; ValueError for an unknown name, or a setting that it doesn't have."""
    if isinstance(given, AudioConfig):
        return given
    if isinstance(given, str):
        if given not in FRONT_ENDS:
            valid = ", ".join(FRONT_ENDS)
            raise ValueError(f"unknown front end {given!r}{nearest(given, FRONT_ENDS)}; valid: {valid}")
        return FRONT_ENDS[given]
    found: AudioConfig = changed(AudioConfig(), {name: typed(AudioConfig, name, one) for name, one in given.items()})
    return found
