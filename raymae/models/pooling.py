"""From the tokens of the patches to one vector per clip."""

from __future__ import annotations

import torch
from torch import Tensor


def token_mean(tokens: Tensor, seen: Tensor) -> Tensor:
    """(B, K, D) tokens and (B, K), 1 where a token counts -> their mean (B, D); 0 where none does."""
    weight = seen[:, :, None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def row_stats(tokens: Tensor, membership: Tensor) -> Tensor:
    """Mean and standard deviation over time of the tokens of every frequency row.

    Keeps apart what a recording device colours differently.

    Args:
        tokens: (B, K, D).
        membership: (B, K, rows), 1 where a token lies in a row and counts.

    Returns:
        (B, 2, rows, D) float32; the mean of a row without a token is 0, its deviation 0.001.
    """
    tokens, membership = tokens.float(), membership.float()
    share = membership / membership.sum(1, keepdim=True).clamp(min=1)
    with torch.autocast(tokens.device.type, enabled=False):  # a difference of near numbers needs float32
        mean = share.mT @ tokens
        variance = share.mT @ (tokens - membership @ mean).square()
    return torch.stack([mean, (variance + 1e-6).sqrt()], dim=1)
