"""Accept pseudo-labels: a rule on the confidence, then limits per group and per class. Works without Ray.

Every refused pseudo-label has a reason: the rule or the limit that it failed first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raymae.config import PseudoLabelConfig

Labels = NDArray[np.integer]
Confidence = NDArray[np.float32]
Probabilities = NDArray[np.float32]
Mask = NDArray[np.bool_]

Reason = Literal["threshold", "coverage", "max_per_group", "max_per_class", "max_class_ratio"]
"""Why a pseudo-label is refused: its confidence is below the threshold, or it exceeds the coverage or a limit."""


@dataclass(frozen=True)
class Acceptance:
    """Which of n pseudo-labels of C classes are accepted, and why the others are refused."""

    accepted: Mask
    """(n,)"""
    reasons: NDArray[np.object_]
    """`Reason` (n,), empty where the pseudo-label is accepted."""
    thresholds: Confidence | None
    """Smallest accepted confidence of each class (C,); None where pseudo-labels are accepted by coverage."""
    smallest_class: int | None = None
    """Accepted clips of the smallest class, which max_class_ratio refers to; None without this limit."""


def decide(probabilities: Probabilities, groups: NDArray[np.str_], config: PseudoLabelConfig) -> Acceptance:
    """Accept or refuse the pseudo-labels of clips, given their calibrated probabilities (n, C) and groups (n,)."""
    guess, confidence = guesses(probabilities)
    accepted, reasons, thresholds = by_rule(probabilities, guess, confidence, config)
    limits: list[tuple[Reason, NDArray[np.generic], int | None]] = [
        ("max_per_group", groups, config.max_per_group),
        ("max_per_class", guess, config.max_per_class),
    ]
    for reason, keys, limit in limits:
        if limit is not None:
            accepted = refuse_beyond(limit, reason, keys, confidence, accepted, reasons)
    smallest = None
    if config.max_class_ratio is not None and accepted.any():
        smallest = int(np.unique(guess[accepted], return_counts=True)[1].min())
        limit = class_ratio_limit(smallest, config)
        accepted = refuse_beyond(limit, "max_class_ratio", guess, confidence, accepted, reasons)
    return Acceptance(accepted, reasons, thresholds, smallest)


def guesses(probabilities: Probabilities) -> tuple[NDArray[np.int64], Confidence]:
    """The most probable class (n,) of each clip and its probability (n,)."""
    if not len(probabilities):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return probabilities.argmax(1), probabilities.max(1)


def by_rule(
    probabilities: Probabilities, guess: Labels, confidence: Confidence, config: PseudoLabelConfig
) -> tuple[Mask, NDArray[np.object_], Confidence | None]:
    """Apply the rule only: what it accepts (n,), the `Reason` (n,) of what it refuses, and its thresholds (C,)."""
    reason: Reason = "threshold" if config.coverage is None else "coverage"
    thresholds = None
    if config.coverage is None:
        thresholds = class_thresholds(probabilities, config)
        accepted = confidence >= thresholds[guess]
    else:
        accepted = covered(guess, confidence, config.coverage)
    reasons = np.full(len(guess), "", object)
    reasons[~accepted] = reason
    return accepted, reasons, thresholds


def refuse_beyond(
    limit: int,
    reason: Reason,
    keys: NDArray[np.generic],
    confidence: Confidence,
    accepted: Mask,
    reasons: NDArray[np.object_],
) -> Mask:
    """Keep the `limit` most confident of the accepted with the same key (n,); write `reason` to the others' reasons."""
    refused = accepted & (ranks(keys, confidence, accepted) >= limit)
    reasons[refused] = reason
    return accepted & ~refused


def class_ratio_limit(smallest_class: int, config: PseudoLabelConfig) -> int:
    """Most accepted clips of a class, by max_class_ratio."""
    assert config.max_class_ratio is not None
    return int(config.max_class_ratio * smallest_class)


def reason_texts(found: Acceptance, guess: Labels, config: PseudoLabelConfig) -> list[str]:
    """The reasons (n,) in words, with the threshold of each clip's guessed class (n,); empty where accepted."""
    thresholds = np.zeros(len(guess)) if found.thresholds is None else found.thresholds[guess]
    return [
        reason and reason_text(reason, found, config, float(threshold))
        for reason, threshold in zip(found.reasons.tolist(), thresholds, strict=True)
    ]


def reason_text(reason: Reason, found: Acceptance, config: PseudoLabelConfig, threshold: float | None = None) -> str:
    """A reason in words; `threshold` is that of the clip's class, None for a text that fits all classes."""
    if reason == "threshold":
        if config.rule == "fixed":
            return f"confidence below {config.confidence_threshold}"
        if threshold is None:
            return "confidence below the threshold of its class"
        return f"confidence below {threshold:.4f}, the threshold of its class ({config.rule})"
    if reason == "coverage":
        return f"not among the most confident {config.coverage} of its class"
    if reason == "max_class_ratio":
        assert found.smallest_class is not None
        return (
            f"not among the {class_ratio_limit(found.smallest_class, config)} most confident of its class, "
            f"{config.max_class_ratio:g} times the {found.smallest_class} of the smallest (max_class_ratio)"
        )
    kind, limit = ("group", config.max_per_group) if reason == "max_per_group" else ("class", config.max_per_class)
    return f"not among the {limit} most confident of its {kind} ({reason} = {limit})"


def class_thresholds(probabilities: Probabilities, config: PseudoLabelConfig) -> Confidence:
    """The smallest accepted confidence of each class (C,)."""
    if config.rule == "freematch":
        return freematch_thresholds(probabilities)
    assert config.confidence_threshold is not None
    if config.rule == "flexmatch":
        return flexmatch_thresholds(probabilities, config.confidence_threshold, config.threshold_floor)
    return np.full(probabilities.shape[1], config.confidence_threshold, np.float32)


def covered(guess: Labels, confidence: Confidence, coverage: float) -> Mask:
    """Mask (n,) of the most confident share of each guessed class, at least one clip of each."""
    accepted = np.zeros(len(guess), bool)
    for label in np.unique(guess):
        mine = guess == label
        accepted |= mine & (ranks(guess, confidence, mine) < max(1, round(coverage * int(mine.sum()))))
    return accepted


def flexmatch_thresholds(probabilities: Probabilities, threshold: float, floor: float) -> Confidence:
    """FlexMatch's threshold of each class (C,): threshold x M(beta), M(x) = x / (2 - x) (Zhang et al. 2021, section 3).

    beta measures how well a class is learned: the number of its guesses that reach the threshold, over that of the
    class with the most. It is computed once over all unlabelled clips, in the paper at every training step; the paper's
    warm-up, which accepts nearly all guesses early in training, therefore doesn't apply. A class without a guess that
    reaches the threshold would get 0: in the paper it gets more as soon as the model learns it, here all its guesses
    would stay accepted. So no threshold is below `floor` (nor is one raised above `threshold` by it). If no class has
    such a guess, all keep the threshold.
    """
    guess, confidence = guesses(probabilities)
    sure = confidence >= np.float32(threshold)
    learned = np.bincount(guess[sure], minlength=probabilities.shape[1]).astype(np.float64)
    beta = learned / learned.max() if sure.any() else np.ones(len(learned))
    return np.asarray(np.maximum(threshold * beta / (2 - beta), min(floor, threshold)), np.float32)


def freematch_thresholds(probabilities: Probabilities) -> Confidence:
    """FreeMatch's self-adaptive threshold of each class (C,) (Wang et al. 2023, eq. 5-8).

    It is the mean confidence of all clips x the class's mean probability over that of the class with the largest,
    computed once over all unlabelled clips, in the paper by moving averages over training steps.
    """
    if not len(probabilities):
        return np.ones(probabilities.shape[1], np.float32)
    values = probabilities.astype(np.float64)
    mean = values.mean(0)
    return np.asarray(values.max(1).mean() * mean / mean.max(), np.float32)


def ranks(keys: NDArray[np.generic], confidence: Confidence, among: Mask) -> NDArray[np.int64]:
    """Rank (n,), from 0, of each clip by confidence among the clips of `among` with its key; n for the other clips.

    Of equal confidences the earlier clip comes first.
    """
    found = np.full(len(keys), len(keys), np.int64)
    chosen = np.flatnonzero(among)
    order = chosen[np.argsort(-confidence[chosen], kind="stable")]
    _, codes = np.unique(keys[order], return_inverse=True)
    by_key = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[by_key], codes[by_key])
    found[order[by_key]] = np.arange(len(order)) - starts
    return found
