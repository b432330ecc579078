"""Paired tests of two models on the same clips: differences of scores, over whole groups, on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymae.evaluation.bootstrap import (
    CHUNK,
    LEVEL,
    MIN_GROUPS,
    PERMUTATIONS,
    RESAMPLES,
    Values,
    bootstrap,
    drawn_weights,
    enough_groups,
    group_numbers,
    group_totals,
    p_value,
    signs,
)
from raymae.evaluation.metrics import Labels, Probabilities, Truth, mean_average_precision, weighted_average_precision

MAP_DRAWS = 1000
"""Permutations and resamples for mAP, each of which costs a pass over the clips per class."""


@dataclass(frozen=True)
class Difference:
    """The score of a first model minus that of a second."""

    value: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval over groups; None where a class has too few groups."""
    p_value: float
    """Two-sided p-value of the paired permutation test, in which the models exchange whole groups at random."""
    groups: int
    """Number of groups."""


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method (1979): the k-th smallest of n times n - k + 1, at least
    those before it and at most 1. Of tests of which none has an effect, the share with any at most alpha is alpha."""
    found = np.asarray(p_values, np.float64)
    order = np.argsort(found, kind="stable")
    steps = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    corrected = np.empty_like(found)
    corrected[order] = np.minimum(steps, 1)
    return [float(one) for one in corrected]


def macro_accuracy_difference(
    labels: Labels,
    first: Labels,
    second: Labels,
    groups: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Difference:
    """Difference of the macro accuracies of two models' predictions (n,) for the same clips.

    The models exchange whole groups. Macro accuracy is a sum over groups, so all permutations are one product of signs
    with the groups' contributions to the difference.
    """
    group, (present, number) = group_numbers(groups), np.unique(labels, return_inverse=True)
    clips = labels[:, None] == present
    won = (first == labels).astype(np.float64) - (second == labels)
    totals = group_totals(group, np.hstack([clips, clips * won[:, None]]))
    parts = (won / np.bincount(number)[number] / len(present))[:, None]
    by_group = group_totals(group, parts)[:, 0]
    value = float(by_group.sum())
    interval = None
    if enough_groups(labels, group):

        def statistic(sums: Values) -> Values:
            drawn, gained = np.split(sums, 2, axis=1)
            return np.nanmean(gained / drawn, axis=1, keepdims=True)

        low, high = bootstrap(totals, statistic, resamples=RESAMPLES, seed=seed)[:, 0]
        interval = float(low), float(high)
    permuted = signs(len(by_group), permutations, seed) @ by_group
    return Difference(value, interval, p_value(value, permuted), len(by_group))


def mean_average_precision_difference(
    truth: Truth,
    first: Probabilities,
    second: Probabilities,
    groups: Sequence[str],
    *,
    draws: int = MAP_DRAWS,
    seed: int = 0,
) -> Difference:
    """Difference of the mAPs of two models' scores (n, C) for the same clips."""
    group, present = group_numbers(groups), np.flatnonzero(truth.any(axis=0))
    n_groups = int(group.max()) + 1
    stays = signs(n_groups, draws, seed).T > 0
    weights = drawn_weights(n_groups, draws, seed).T
    permuted, drawn = np.zeros(draws), np.zeros((len(present), draws))
    for start in range(0, draws, CHUNK):
        part = slice(start, start + CHUNK)
        # 1 where the first model, after the exchange, has its own score (n, …), then where it has the second's (n, …)
        kept = np.concatenate([stays[group, part], ~stays[group, part]]).astype(np.int64)
        for place, number in enumerate(present):
            true, scores = truth[:, number], (first[:, number], second[:, number])
            twice = np.append(true, true), np.append(*scores)
            exchanged = [weighted_average_precision(*twice, one) for one in (kept, 1 - kept)]
            permuted[part] += (exchanged[0] - exchanged[1]) / len(present)
            resampled = [weighted_average_precision(true, one, weights[group, part]) for one in scores]
            drawn[place, part] = resampled[0] - resampled[1]
    value = mean_average_precision(truth, first) - mean_average_precision(truth, second)
    interval = None
    if min(len(np.unique(group[truth[:, number] > 0])) for number in present) >= MIN_GROUPS:
        low, high = np.quantile(np.nanmean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        interval = float(low), float(high)
    return Difference(value, interval, p_value(value, permuted), n_groups)
