"""Pooling of patch tokens to one vector per clip, and segments of clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from raymae.models.precision import full_precision


def one_hot(ids: Tensor, count: int) -> Tensor:
    """(...) int64 -> (..., count) bool. torch's own checks its input, which reads it back."""
    return ids[..., None] == torch.arange(count, device=ids.device)


def token_mean(tokens: Tensor, kept: Tensor) -> Tensor:
    """(B, K, D) tokens and (B, K), 1 for tokens that count -> their mean (B, D); 0 if none does."""
    weight = kept[:, :, None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def row_stats(tokens: Tensor, membership: Tensor) -> Tensor:
    """Mean and standard deviation over time of the tokens of every frequency row.

    Keeps the rows, whose level depends on the recording device, apart.

    Args:
        tokens: (B, K, D).
        membership: (B, K, rows), 1 where a token belongs to a row and counts.

    Returns:
        (B, 2, rows, D) float32; the mean of a row without a token is 0, its deviation 0.001.
    """
    tokens, membership = tokens.float(), membership.float()
    share = membership / membership.sum(1, keepdim=True).clamp(min=1)
    with full_precision(tokens):  # a difference of nearly equal numbers needs float32
        mean = share.mT @ tokens
        variance = share.mT @ (tokens - membership @ mean).square()
    return torch.stack([mean, (variance + 1e-6).sqrt()], dim=1)


def shifted(log_mel: Tensor, valid_frames: Tensor, patch: int, shifts: int, silence: float) -> tuple[Tensor, Tensor]:
    """(B, T, F) and valid frames (B,) -> each clip `shifts` times in a row: (B shifts, T, F), (B shifts,).

    Each time it begins 1 / shifts of a patch of `patch` frames later, with as much silence at its end, so that it is
    cut into other patches.
    """
    starts = [number * patch // shifts for number in range(shifts)]
    clips = [functional.pad(log_mel[:, start:], (0, 0, 0, start), value=silence) for start in starts]
    frames = [(valid_frames - start).clamp(min=0) for start in starts]
    return torch.stack(clips, 1).flatten(0, 1), torch.stack(frames, 1).flatten()


def segment_starts(n_frames: int, length: int, least: int) -> list[int]:
    """First frames of the consecutive segments of a clip.

    The last one ends with the clip and may overlap the one before. A remainder of fewer than `least` frames, too short
    for a whole patch, gets no segment of its own.
    """
    count = max(1, (n_frames - least) // length + 1)
    return [min(number * length, max(0, n_frames - length)) for number in range(count)]


def cut_segments(log_mel: Tensor, valid_frames: Tensor, length: int, least: int) -> tuple[Tensor, Tensor]:
    """(B, T, F) and valid frames (B,) -> S segments per clip, clip by clip: (B S, length, F), (B S,).

    A clip of at most `length` frames is one segment.
    """
    starts = segment_starts(log_mel.shape[1], length, least)
    segments = torch.stack([log_mel[:, start : start + length] for start in starts], dim=1)
    frames = torch.stack([(valid_frames - start).clamp(0, segments.shape[2]) for start in starts], dim=1)
    return segments.flatten(0, 1), frames.flatten()
