"""Log-mels of recordings; without torch."""

from __future__ import annotations

from typing import Any

from raymae.api.settings import FrontEnd, front_end_of
from raymae.audio.decode import FloatArray
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.audio.sources import open_clip
from raymae.audio.waveform import read_waveform
from raymae.inference.sources import source_of


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
