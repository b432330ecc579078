"""Which of a teacher's guesses are accepted: a rule by confidence, then limits per group and per class. No Ray.

Every refused guess has a reason that names the rule or the limit which it failed first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymae.config import PseudoLabelConfig

Labels = NDArray[np.integer]
Confidence = NDArray[np.float32]
Probabilities = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Acceptance:
    """What was decided of some guesses (n,) of C classes."""

    accepted: Mask
    """(n,)"""
    reasons: NDArray[np.object_]
    """(n,), empty where the guess is accepted."""
    thresholds: Confidence | None
    """Smallest accepted confidence of each class (C,); None where clips are accepted by coverage."""


def decide(probabilities: Probabilities, groups: NDArray[np.str_], config: PseudoLabelConfig) -> Acceptance:
    """Accept guesses from calibrated probabilities (n, C) of clips in some groups (n,), as `config` says."""
    guess, confidence = guesses(probabilities)
    accepted, reasons, thresholds = by_rule(probabilities, guess, confidence, config)
    limits = [
        (groups, config.max_per_group, "not among the {0} surest of its group (max_per_group = {0})"),
        (guess, config.max_per_class, "not among the {0} surest of its class (max_per_class = {0})"),
    ]
    for keys, limit, text in limits:
        if limit is not None:
            refused = accepted & (ranks(keys, confidence, accepted) >= limit)
            reasons[refused] = text.format(limit)
            accepted = accepted & ~refused
    if config.max_class_ratio is not None and accepted.any():
        fewest = int(np.unique(guess[accepted], return_counts=True)[1].min())
        most = int(config.max_class_ratio * fewest)
        refused = accepted & (ranks(guess, confidence, accepted) >= most)
        reasons[refused] = (
            f"not among the {most} surest of its class, {config.max_class_ratio:g} times the {fewest} of the smallest "
            "(max_class_ratio)"
        )
        accepted = accepted & ~refused
    return Acceptance(accepted, reasons, thresholds)


def guesses(probabilities: Probabilities) -> tuple[NDArray[np.int64], Confidence]:
    """The likeliest class (n,) of each clip and its probability (n,)."""
    if not len(probabilities):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    return probabilities.argmax(1), probabilities.max(1)


def by_rule(
    probabilities: Probabilities, guess: Labels, confidence: Confidence, config: PseudoLabelConfig
) -> tuple[Mask, NDArray[np.object_], Confidence | None]:
    """What the rule alone accepts (n,), the reasons (n,) of what it refuses, and its thresholds (C,)."""
    reasons = np.full(len(guess), "", object)
    if config.coverage is not None:
        accepted = covered(guess, confidence, config.coverage)
        reasons[~accepted] = f"not among the surest {config.coverage} of its class"
        return accepted, reasons, None
    thresholds = class_thresholds(probabilities, config)
    accepted = confidence >= thresholds[guess]
    rule = "" if config.rule == "fixed" else f", the threshold of its class ({config.rule})"
    for place in np.flatnonzero(~accepted):
        wanted = config.confidence_threshold if config.rule == "fixed" else f"{thresholds[guess[place]]:.4f}"
        reasons[place] = f"confidence below {wanted}{rule}"
    return accepted, reasons, thresholds


def class_thresholds(probabilities: Probabilities, config: PseudoLabelConfig) -> Confidence:
    """The smallest confidence that is accepted of each class (C,)."""
    if config.rule == "freematch":
        return freematch_thresholds(probabilities)
    assert config.confidence_threshold is not None
    if config.rule == "flexmatch":
        return flexmatch_thresholds(probabilities, config.confidence_threshold)
    return np.full(probabilities.shape[1], config.confidence_threshold, np.float32)


def covered(guess: Labels, confidence: Confidence, coverage: float) -> Mask:
    """The surest share of each guessed class, at least one guess of each (n,)."""
    accepted = np.zeros(len(guess), bool)
    for label in np.unique(guess):
        mine = guess == label
        accepted |= mine & (ranks(guess, confidence, mine) < max(1, round(coverage * int(mine.sum()))))
    return accepted


def flexmatch_thresholds(probabilities: Probabilities, threshold: float) -> Confidence:
    """FlexMatch's threshold of each class (C,): threshold x M(beta), M(x) = x / (2 - x) (Zhang et al. 2021, section 3).

    beta, how well a class is learned, is the number of its guesses that reach the threshold, over that of the class
    with the most. Here once over all unlabelled clips, in the paper at every step of training; so its warm-up, which
    accepts nearly all while little is learned, has no place here. A class of which no guess reaches the threshold gets
    0, as in the paper: all its guesses are accepted. Where no class has such a guess, all keep the threshold.
    """
    guess, confidence = guesses(probabilities)
    sure = confidence >= np.float32(threshold)
    learned = np.bincount(guess[sure], minlength=probabilities.shape[1]).astype(np.float64)
    beta = learned / learned.max() if sure.any() else np.ones(len(learned))
    return np.asarray(threshold * beta / (2 - beta), np.float32)


def freematch_thresholds(probabilities: Probabilities) -> Confidence:
    """FreeMatch's self-adaptive threshold of each class (C,) (Wang et al. 2023, eq. 5-8): the mean confidence of all
    clips x the class's mean probability over that of the class with the largest.

    Here over all unlabelled clips at once, in the paper by moving averages over the steps of training.
    """
    if not len(probabilities):
        return np.ones(probabilities.shape[1], np.float32)
    values = probabilities.astype(np.float64)
    mean = values.mean(0)
    return np.asarray(values.max(1).mean() * mean / mean.max(), np.float32)


def ranks(keys: NDArray[np.generic], confidence: Confidence, among: Mask) -> NDArray[np.int64]:
    """The place (n,), from 0, of each clip by confidence among those of `among` with its key; n for the others.

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
