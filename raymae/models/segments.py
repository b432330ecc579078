"""Clips in segments as long as the crops of pre-training: what an encoder has seen, it sees again.

All of a clip is read so, at the cost of shorter sequences and at time positions that were trained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_starts(n_frames: int, length: int, least: int) -> list[int]:
    """First frames of the consecutive segments of a clip.

    The last one ends with the clip and may lie over the one before; but a rest of fewer than `least` frames, in which
    no whole patch lies, has no segment of its own.
    """
    count = max(1, (n_frames - least) // length + 1)
    return [min(number * length, max(0, n_frames - length)) for number in range(count)]


def cut_segments(log_mel: Tensor, valid_frames: Tensor, length: int, least: int) -> tuple[Tensor, Tensor]:
    """(B, T, F) and valid frames (B,) -> the clips' S segments, one clip after the other: (B S, length, F), (B S,).

    A clip of at most `length` frames is its own and only segment.
    """
    starts = segment_starts(log_mel.shape[1], length, least)
    segments = torch.stack([log_mel[:, start : start + length] for start in starts], dim=1)
    frames = torch.stack([(valid_frames - start).clamp(0, segments.shape[2]) for start in starts], dim=1)
    return segments.flatten(0, 1), frames.flatten()
