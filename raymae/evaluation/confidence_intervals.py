"""Confidence intervals of scores, by bootstrap over whole groups (`raymae.evaluation.bootstrap`), on numpy arrays.

There is no interval where a class has fewer than `MIN_GROUPS` groups among the clips. Arrays are as in
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
"""Resamples for mAP, each of which costs about as much as a sort per class."""


def macro_accuracy_interval(
    labels: Labels,
    predicted: Labels,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of macro accuracy; None with too few groups of a class."""
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
    """Percentile interval of the mean of the clips' values (n,), as for accuracy and log loss; None as above."""
    group = group_numbers(groups)
    if not enough_groups(labels, group):
        return None
    totals = group_totals(group, np.stack([values, np.ones(len(values))], axis=1))
    low, high = bootstrap(totals, lambda sums: sums[:, :1] / sums[:, 1:])[:, 0]
    return float(low), float(high)


def ece_interval(found: Reliability, labels: Labels, groups: Sequence[str]) -> Interval | None:
    """Interval of the expected calibration error; None with too few groups of a class.

    Resampling biases the error upwards, so the interval keeps the spread of the resamples and is shifted (`moved`).
    """
    group = group_numbers(groups)
    if not enough_groups(labels, group):
        return None
    totals = group_totals(group, np.hstack([found.gaps(), np.ones((len(group), 1))]))

    def statistic(sums: Values) -> Values:
        return np.abs(sums[:, :-1]).sum(axis=1, keepdims=True) / sums[:, -1:]

    return moved(totals, statistic, calibration_error(found))


def moved(totals: Values, statistic: Callable[[Values], Values], figure: float) -> Interval:
    """Percentile interval of a statistic that resampling biases, shifted so that the resamples' mean is `figure`.

    Clipped to [0, 1].
    """
    drawn: list[Values] = []

    def recorded(sums: Values) -> Values:
        drawn.append(statistic(sums))
        return drawn[-1]

    low, high = bootstrap(totals, recorded)[:, 0] - np.concatenate(drawn).mean() + figure
    return float(max(low, 0.0)), float(min(high, 1.0))


def class_intervals(
    labels: Labels, predicted: Labels, groups: Sequence[str], n_classes: int
) -> dict[str, list[Interval | None]]:
    """Percentile intervals of every class's recall, precision and f1, each (C,); None for a class with too few groups
    of its own."""
    group, numbers = group_numbers(groups), np.arange(n_classes)
    true, guessed = labels[:, None] == numbers, predicted[:, None] == numbers
    totals = group_totals(group, np.hstack([true, guessed, true & guessed]))
    wanted = np.array([len(np.unique(group[mine])) >= MIN_GROUPS for mine in true.T])

    def statistic(sums: Values) -> Values:
        clips, chosen, right = (part[:, wanted] for part in np.split(sums, 3, axis=1))
        return np.hstack([right / clips, np.where(chosen > 0, right / chosen, 0), 2 * right / (clips + chosen)])

    ends = iter(bootstrap(totals, statistic).T.tolist() if wanted.any() else [])
    return {name: [tuple(next(ends)) if there else None for there in wanted] for name in ("recall", "precision", "f1")}


# Multi-label ----------------------------------------------------------------------------------------------------------


def average_precision_intervals(
    truth: Truth,
    probabilities: Probabilities,
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = MAP_RESAMPLES,
    seed: int = 0,
) -> tuple[Interval | None, list[Interval | None]]:
    """Intervals of mAP and of every class's average precision (C,), for evaluation sets of this size.

    A class with clips in fewer than `MIN_GROUPS` groups has none, and neither has mAP then. A resample without a clip
    of some class is scored over the other classes. Clips drawn twice raise average precision, so the resampled mAPs are
    too high, with many classes all above the mAP itself (simulated: 0.0317 to 0.0332 for an mAP of 0.0295 with 527
    classes and 20,000 clips). So the interval keeps their spread, shifted so that their mean is the mAP.
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
