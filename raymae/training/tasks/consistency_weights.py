"""Weights of the predictions for unlabelled clips in consistency training: FixMatch, FreeMatch and SoftMatch.

All take the class probabilities (n, C) of the weak views of some clips and return weights (n,) in [0, 1]: each
clip's most probable class is the target of its strong view, with this weight. Running statistics are buffers that are
updated once a step by all its clips (`parallel.StepSums`); in the papers, where a step is one batch, they
include the batch's own clips.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raymae.config import ConsistencyConfig
from raymae.models.pooling import one_hot
from raymae.training.parallel import StepSums


class FixMatch(nn.Module):
    """1 where the confidence reaches a fixed threshold, else 0 (Sohn et al. 2020)."""

    def __init__(self, num_classes: int, config: ConsistencyConfig) -> None:
        super().__init__()
        self.confidence_threshold = config.confidence_threshold

    @property
    def threshold(self) -> Tensor:
        """The threshold, ()."""
        return torch.tensor(self.confidence_threshold)

    @torch.no_grad()
    def forward(self, probabilities: Tensor, counted: Tensor) -> Tensor:
        """(n, C) and `counted` (n,), 1 or 0 -> weights (n,), 0 for clips that don't count."""
        return (probabilities.amax(1) >= self.confidence_threshold).float() * counted


class FreeMatch(StepSums):
    """1 where the confidence reaches the threshold of its class, else 0 (Wang et al. 2023).

    The thresholds tau(c) = p(c) / max p * tau ("self-adaptive thresholding") come from running means, which start
    at 1 / C: tau of the confidences, p of the probabilities. A third, h, of how often each class is predicted, is for
    the fairness loss.
    """

    tau: Tensor
    classes: Tensor
    guesses: Tensor

    def __init__(self, num_classes: int, config: ConsistencyConfig) -> None:
        super().__init__(2 + 2 * num_classes)
        self.momentum = config.momentum
        even = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("tau", even[0].clone())
        self.register_buffer("classes", even.clone())
        self.register_buffer("guesses", even.clone())

    @property
    def threshold(self) -> Tensor:
        """The threshold of the class with the largest p, ()."""
        return self.tau

    @property
    def thresholds(self) -> Tensor:
        """The thresholds of all classes, (C,)."""
        return self.classes / self.classes.max() * self.tau

    @torch.no_grad()
    def forward(self, probabilities: Tensor, counted: Tensor) -> Tensor:
        """(n, C) and `counted` (n,), 1 or 0 -> weights (n,); counts the clips for the next step."""
        confidence, predicted = probabilities.double().max(1)
        hits = one_hot(predicted, probabilities.shape[1])
        columns = torch.cat([torch.ones_like(confidence)[:, None], confidence[:, None], probabilities, hits], 1)
        self.sums += (columns * counted[:, None]).sum(0)
        return (confidence >= self.thresholds[predicted]).float() * counted

    def update(self, sums: Tensor) -> None:
        """Move tau, p and h towards the means of a step's clips."""
        number = len(self.classes)
        means = sums[1:] / sums[0].clamp(min=1)
        for running, mean in zip(
            (self.tau, self.classes, self.guesses), (means[0], *means[1:].split(number)), strict=True
        ):
            running.lerp_(mean, 1 - self.momentum)

    def fairness(self, logits: Tensor, weights: Tensor) -> Tensor:
        """The self-adaptive fairness loss (G,) of every mixing group, from its strong views' logits (G, n, C): the sum
        of a log b.

        a = SumNorm(p / h), b = SumNorm(q / k), with a group's mean probabilities q and its shares k of predicted
        classes, over the clips with a weight (G, n). Classes that are predicted for no such clip are left out, without
        a gradient; 0 if no clip has a weight.
        """
        probabilities = logits.float().softmax(2)
        mean = (weights[:, :, None] * probabilities).sum(1)
        hits = (weights[:, :, None] * one_hot(probabilities.argmax(2), logits.shape[2])).sum(1)
        predicted = hits > 0
        even = torch.where(predicted, mean / hits.clamp(min=1), 0.0)
        even = torch.where(predicted, even / even.sum(1, keepdim=True).clamp(min=1e-12), 1.0)
        target = self.classes / self.guesses
        return ((target / target.sum()).to(even.dtype) * even.log()).sum(1)


class SoftMatch(StepSums):
    """A Gaussian of the confidence below its running mean, 1 above it (Chen et al. 2023).

    The Gaussian's deviation is that of the confidences divided by `n_sigma`, as in the authors' code. The mean starts
    at 1 / C, the variance at 1. The confidence is that of probabilities divided by their running mean
    and normalised again ("uniform alignment"), so that often-predicted classes don't crowd out the others; the target
    of a clip is its most probable class without the alignment.
    """

    mean: Tensor
    variance: Tensor
    classes: Tensor

    def __init__(self, num_classes: int, config: ConsistencyConfig) -> None:
        super().__init__(3 + num_classes)
        self.momentum, self.n_sigma = config.momentum, config.n_sigma
        even = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("mean", even[0].clone())
        self.register_buffer("variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("classes", even)

    @property
    def threshold(self) -> Tensor:
        """The confidence from which on a prediction has the weight 1, ()."""
        return self.mean

    @torch.no_grad()
    def forward(self, probabilities: Tensor, counted: Tensor) -> Tensor:
        """(n, C) and `counted` (n,), 1 or 0 -> weights (n,); counts the clips for the next step."""
        probabilities = probabilities.double()
        aligned = probabilities / self.classes.clamp(min=1e-12)
        confidence = (aligned / aligned.sum(1, keepdim=True)).amax(1)
        moments = torch.stack([torch.ones_like(confidence), confidence, confidence.square()], 1)
        self.sums += (torch.cat([moments, probabilities], 1) * counted[:, None]).sum(0)
        below = self.n_sigma * (confidence - self.mean).clamp(max=0)
        return torch.exp(-below.square() / (2 * self.variance.clamp(min=1e-12))).float() * counted

    def update(self, sums: Tensor) -> None:
        """Move mean, variance (unbiased) and class shares towards those of a step's clips."""
        count, mean = sums[0], sums[1] / sums[0].clamp(min=1)
        variance = (sums[2] - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
        for running, found in zip(
            (self.mean, self.variance, self.classes), (mean, variance, sums[3:] / count.clamp(min=1)), strict=True
        ):
            running.lerp_(found, 1 - self.momentum)


Weighting = FixMatch | FreeMatch | SoftMatch
METHODS: dict[str, Callable[[int, ConsistencyConfig], Weighting]] = {
    "fixmatch": FixMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
}


def consistency_loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the strong views' logits (n, C) against targets (n,), weighted and summed over the clips."""
    return (weights * F.cross_entropy(logits.float(), target, reduction="none")).sum()
