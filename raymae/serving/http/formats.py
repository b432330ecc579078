"""The formats of recordings that this installation reads."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import soundfile

COMMON = {"WAV": "WAV", "FLAC": "FLAC", "OGG": "OGG (Vorbis, Opus, FLAC)", "MP3": "MP3", "MPEG": "MP3"} | {
    name: name for name in ("AIFF", "AU", "CAF", "W64", "RF64")
}
"""What libsndfile reads among the formats of recordings, by its name."""
BY_PYAV = ("M4A", "AAC", "MP4", "WebM", "WMA", "AMR")


@cache
def formats() -> tuple[str, ...]:
    """The formats by name, those that people have most often first."""
    known = soundfile.available_formats()
    found = dict.fromkeys(name for key, name in COMMON.items() if key in known)
    return (*found, *(BY_PYAV if find_spec("av") else ()))
