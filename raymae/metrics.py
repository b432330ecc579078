"""Metrics of classifiers on numpy arrays: labels (n,) are class numbers, probabilities (n, C).

A class without a clip has no recall: it takes no part in macro accuracy and is named in `missing_classes`. Where clips
have several classes, truth (n, C) is 1 for those of each clip, else 0; a class without a clip has no average precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]
Truth = NDArray[np.floating]

MIN_GROUPS = 5
"""Fewest groups of each class from which an interval is drawn."""


def confusion_matrix(labels: Labels, predicted: Labels, n_classes: int) -> NDArray[np.int64]:
    """Clips by true class (rows) and predicted class (columns), (C, C)."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Share of the clips that are classified rightly."""
    return float(np.mean(labels == predicted))


def macro_accuracy(labels: Labels, predicted: Labels) -> float:
    """Mean over the classes present in `labels` of their recall."""
    clips = np.bincount(labels)
    right = np.bincount(labels[labels == predicted], minlength=len(clips))
    return float(np.mean(right[clips > 0] / clips[clips > 0]))


def missing_classes(labels: Labels, class_names: Sequence[str]) -> list[str]:
    """The classes of which there is no clip."""
    present = set(labels.tolist())
    return [name for number, name in enumerate(class_names) if number not in present]


def accuracy_by(labels: Labels, predicted: Labels, keys: Sequence[str | None]) -> dict[str, float]:
    """Accuracy of the clips of each key (device, city), sorted; None is "unknown"."""
    names = np.array(["unknown" if key is None else key for key in keys])
    return {str(name): accuracy(labels[names == name], predicted[names == name]) for name in np.unique(names)}


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean cross-entropy in nats; probabilities below the precision of float32 count as that."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(chosen.clip(np.finfo(np.float32).eps)).mean())


def ece(labels: Labels, probabilities: Probabilities, n_bins: int = 15) -> float:
    """Expected calibration error: confidence against accuracy in bins of equal width (Guo et al. 2017, section 2)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def macro_accuracy_interval(
    labels: Labels,
    predicted: Labels,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of macro accuracy; None where a class has fewer than `MIN_GROUPS` groups.

    Whole groups are drawn: the clips of one recording are right or wrong together, and single clips would give an
    interval that is far too narrow.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    present, number = np.unique(labels, return_inverse=True)
    n_groups, cells = int(group.max()) + 1, group * len(present) + number
    clips = np.bincount(cells, minlength=n_groups * len(present)).reshape(n_groups, -1)
    right = np.bincount(cells, weights=labels == predicted, minlength=clips.size).reshape(n_groups, -1)
    if (clips > 0).sum(axis=0).min() < MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        drawn = weight @ clips
        scores.append(np.mean((weight @ right)[drawn > 0] / drawn[drawn > 0]))
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# Several classes a clip -----------------------------------------------------------------------------------------------


def average_precision(truth: Truth, probabilities: Probabilities) -> NDArray[np.float64]:
    """Average precision of every class (C,), area under its curve of precision over recall; NaN without a clip.

    As scikit-learn sums it, without interpolation, and as AudioSet's figures are given.
    """
    found = np.full(truth.shape[1], np.nan)
    for number in np.flatnonzero(truth.any(axis=0)):
        found[number] = average_precision_score(truth[:, number], probabilities[:, number])
    return found


def mean_average_precision(truth: Truth, probabilities: Probabilities) -> float:
    """mAP: mean over the classes that have a clip of their average precision; ValueError where none has one."""
    if not truth.any():
        raise ValueError("no clip has a class, so there is no average precision")
    return float(np.nanmean(average_precision(truth, probabilities)))


def binary_log_loss(truth: Truth, probabilities: Probabilities) -> float:
    """Mean binary cross-entropy over clips and classes in nats; clipped at the precision of float32."""
    right = np.where(truth > 0, probabilities, 1 - probabilities.astype(np.float64))
    return float(-np.log(right.clip(np.finfo(np.float32).eps)).mean())


def mean_average_precision_interval(
    truth: Truth,
    probabilities: Probabilities,
    groups: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Bootstrap interval of mAP over whole groups, for evaluation sets of this size; None where a class has clips in
    fewer than `MIN_GROUPS`.

    A drawn set without a clip of some class is scored over the others. Clips that are drawn twice raise average
    precision, so that the drawn mAPs lie too high, and with many classes above the figure itself (simulated: 0.0317 to
    0.0332 around 0.0295 for 527 classes and 20,000 clips): their spread is kept, their mean is moved to the figure.
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n_groups, present = int(group.max()) + 1, np.flatnonzero(truth.any(axis=0))
    if min(len(np.unique(group[truth[:, number] > 0])) for number in present) < MIN_GROUPS:
        return None
    rng = np.random.default_rng(seed)
    draws = rng.integers(n_groups, size=(resamples, n_groups))
    weights = np.stack([np.bincount(draw, minlength=n_groups) for draw in draws], axis=1)[group]
    drawn = [weighted_average_precision(truth[:, one], probabilities[:, one], weights) for one in present]
    scores = np.nanmean(drawn, axis=0)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2]) - scores.mean()
    figure = mean_average_precision(truth, probabilities)
    return float(figure + low), float(figure + high)


def weighted_average_precision(
    truth: NDArray[np.floating], scores: NDArray[np.floating], weights: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Average precision (R,) of one class, truth and scores (n,), under R weightings of the clips (n, R); NaN where no
    clip of the class has a weight.

    `average_precision_score` with sample_weight gives the same, and would sort anew for each weighting.
    """
    order = np.argsort(-scores, kind="stable")
    mine = order[truth[order] > 0]
    above = np.searchsorted(
        -scores[order], -scores[mine], side="right"
    )  # clips with the score of each, or a higher one
    above, first = np.unique(above, return_index=True)
    taken = np.cumsum(np.add.reduceat(weights[order[: above[-1]]], np.append(0, above[:-1]), axis=0), axis=0)
    gained = np.add.reduceat(weights[mine], first, axis=0)
    right = np.cumsum(gained, axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gained * right / np.maximum(taken, 1)).sum(axis=0) / right[-1])
