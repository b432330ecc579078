"""Parts of recordings and the clips that are read of them, as data: without decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raymae.audio.errors import AudioError
from raymae.config import AudioConfig

Span = tuple[float | None, float | None]
"""Start and end of a part of a recording, seconds; None: its beginning, its end."""
WHOLE: Span = (None, None)
Clip = tuple[NDArray[np.float16], int, float]
"""Log-mel (T, F), its frames before padding, and the seconds that were read."""


class SpanReader(Protocol):
    """Reads clips, one recording after the other (`raymae.audio.clip_reader.ClipReader`)."""

    audio: AudioConfig
    timeout: float
    """Time limit for one file, s."""

    def each(self, path: str, spans: Sequence[Span]) -> Iterator[Clip | AudioError]:
        """A clip, or the reason why there is none, for each of some parts of a recording."""
        ...
