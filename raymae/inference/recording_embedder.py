"""Embeddings of recordings of any length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raymae.inference.embedder import Embedder, Pool
from raymae.inference.windowed import Clip, WindowedModel


class RecordingEmbedder(WindowedModel):
    """An encoder with its front end, from recordings to vectors: the values of their windows."""

    def __init__(self, embedder: Embedder, pool: Pool = "row_stats") -> None:
        super().__init__(embedder.audio)
        self.embedder, self.pool = embedder, pool

    def of_clips(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """Vectors (B, E) of windows (`Embedder.clips`)."""
        frames = np.array([clip.valid_frames for clip in clips], np.int32)
        return self.embedder.clips(np.stack([clip.log_mel for clip in clips]), frames, self.pool)
