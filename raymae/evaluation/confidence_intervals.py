"""How far a score may be off: bootstrap intervals from whole groups (`raymae.evaluation.bootstrap`), on numpy arrays.

There is none where a class has fewer than `MIN_GROUPS` groups among the clips. Arrays are as in
`raymae.evaluation.metrics`; groups name the recording or session of each clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raymae.evaluation.bootstrap import (
    LEVEL,
    MIN_GROUPS,
    RESAMPLES,
    Values,
    bootstrap,
    drawn_weights,
    enough_groups,
    group_numbers,
    group_totals,
)
from raymae.evaluation.metrics import (
    Labels,
    Probabilities,
    Reliability,
    Truth,
    average_precision,
    calibration_error,
    weighted_average_precision,
)

Interval = tuple[float, float]

MAP_RESAMPLES = 200
"""Drawn sets for mAP, of which each takes a sorting's worth of work for every class."""


def macro_accuracy_interval(
    labels: Labels,
    predicted: Labels,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of macro accuracy."""
    group, present = group_numbers(groups), np.unique(labels)
    if not enough_groups(labels, group):
        return None
    clips = labels[:, None] == present
    totals = group_totals(group, np.hstack([clips, clips & (labels == predicted)[:, None]]))

    def statistic(sums: Values) -> Values:
        drawn, right = np.split(sums, 2, axis=1)
        return np.nanmean(right / drawn, axis=1, keepdims=True)

    low, high = bootstrap(totals, statistic, level=level, resamples=resamples, seed=seed)[:, 0]
    return float(low), float(high)


def mean_interval(values: Values, labels: Labels, groups: Sequence[str]) -> Interval | None:
    """Percentile interval of the mean of the clips' values (n,): accuracy, log loss."""
    group = group_numbers(groups)
    if not enough_groups(labels, group):
        return None
    totals = group_totals(group, np.stack([values, np.ones(len(values))], axis=1))
    low, high = bootstrap(totals, lambda sums: sums[:, :1] / sums[:, 1:])[:, 0]
    return float(low), float(high)


def ece_interval(found: Reliability, labels: Labels, groups: Sequence[str]) -> Interval | None:
    """Interval of the calibration error.

    The gaps of drawn sets are too wide by chance: their spread is kept, their mean is moved to the figure.
    """
    group = group_numbers(groups)
    if not enough_groups(labels, group):
        return None
    totals = group_totals(group, np.hstack([found.gaps(), np.ones((len(group), 1))]))

    def statistic(sums: Values) -> Values:
        return np.abs(sums[:, :-1]).sum(axis=1, keepdims=True) / sums[:, -1:]

    return moved(totals, statistic, calibration_error(found))


def moved(totals: Values, statistic: Callable[[Values], Values], figure: float) -> Interval:
    """The interval of a figure that drawing biases, with the drawn ones' mean moved to it; kept within [0, 1]."""
    drawn: list[Values] = []

    def remembered(sums: Values) -> Values:
        drawn.append(statistic(sums))
        return drawn[-1]

    low, high = bootstrap(totals, remembered)[:, 0] - np.concatenate(drawn).mean() + figure
    return float(max(low, 0.0)), float(min(high, 1.0))


def class_intervals(
    labels: Labels, predicted: Labels, groups: Sequence[str], n_classes: int
) -> dict[str, list[Interval | None]]:
    """Percentile intervals of every class's recall, precision and f1, each (C,); None for a class that has too few
    groups itself, whatever the others have."""
    group, numbers = group_numbers(groups), np.arange(n_classes)
    true, guessed = labels[:, None] == numbers, predicted[:, None] == numbers
    totals = group_totals(group, np.hstack([true, guessed, true & guessed]))
    wanted = np.array([len(np.unique(group[mine])) >= MIN_GROUPS for mine in true.T])

    def statistic(sums: Values) -> Values:
        clips, chosen, right = (part[:, wanted] for part in np.split(sums, 3, axis=1))
        return np.hstack([right / clips, np.where(chosen > 0, right / chosen, 0), 2 * right / (clips + chosen)])

    ends = iter(bootstrap(totals, statistic).T.tolist() if wanted.any() else [])
    return {name: [tuple(next(ends)) if there else None for there in wanted] for name in ("recall", "precision", "f1")}


# Several classes a clip -----------------------------------------------------------------------------------------------


def average_precision_intervals(
    truth: Truth,
    probabilities: Probabilities,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = MAP_RESAMPLES,
    seed: int = 0,
) -> tuple[Interval | None, list[Interval | None]]:
    """Intervals of mAP and of every class's average precision (C,), for evaluation sets of this size; None for mAP
    where a class has clips in fewer than `MIN_GROUPS` groups, and for that class.

    A drawn set without a clip of some class is scored over the others. Clips that are drawn twice raise average
    precision, so that the drawn mAPs lie too high, and with many classes above the figure itself (simulated: 0.0317 to
    0.0332 around 0.0295 for 527 classes and 20,000 clips): their spread is kept, their mean is moved to the figure.
    """
    group, present = group_numbers(groups), np.flatnonzero(truth.any(axis=0))
    wanted = [len(np.unique(group[truth[:, number] > 0])) >= MIN_GROUPS for number in present]
    by_class: list[Interval | None] = [None] * truth.shape[1]
    if not any(wanted):
        return None, by_class
    weights = drawn_weights(int(group.max()) + 1, resamples, seed).T[group]
    figures = average_precision(truth, probabilities)[present]
    drawn = np.stack([weighted_average_precision(truth[:, one], probabilities[:, one], weights) for one in present])
    tails = [(1 - level) / 2, (1 + level) / 2]

    def around(scores: Values, figure: float) -> Interval:
        low, high = np.nanquantile(scores, tails) - np.nanmean(scores) + figure
        return float(low), float(high)

    for number, scores, figure, enough in zip(present, drawn, figures, wanted, strict=True):
        if enough:
            low, high = around(scores, float(figure))
            by_class[number] = max(low, 0.0), min(high, 1.0)
    return (around(np.nanmean(drawn, axis=0), float(figures.mean())) if all(wanted) else None), by_class
