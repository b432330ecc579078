"""Metrics of classifiers on numpy arrays: labels (n,) are class numbers, probabilities (n, C).

A class without a clip has no recall: it is excluded from macro accuracy and listed in `missing_classes`. Multi-label:
truth (n, C) is 1 for the classes of each clip, else 0; a class without a clip has no average precision. Confidence
intervals: `raymae.evaluation.confidence_intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]
Truth = NDArray[np.floating]

Values = NDArray[np.float64]

N_BINS = 15
"""Bins of confidence for calibration (Guo et al. 2017)."""


def confusion_matrix(labels: Labels, predicted: Labels, n_classes: int) -> NDArray[np.int64]:
    """Clip counts by true class (rows) and predicted class (columns), (C, C)."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Share of the clips that are classified correctly."""
    return float(np.mean(labels == predicted))


def macro_accuracy(labels: Labels, predicted: Labels) -> float:
    """Mean recall over the classes present in `labels`."""
    clips = np.bincount(labels)
    right = np.bincount(labels[labels == predicted], minlength=len(clips))
    return float(np.mean(right[clips > 0] / clips[clips > 0]))


def missing_classes(labels: Labels, class_names: Sequence[str]) -> list[str]:
    """The names of classes without a clip."""
    present = set(labels.tolist())
    return [name for number, name in enumerate(class_names) if number not in present]


def accuracy_by(labels: Labels, predicted: Labels, keys: Sequence[str | None]) -> dict[str, float]:
    """Accuracy by key (device, city), sorted; None becomes "unknown"."""
    names = np.array(["unknown" if key is None else key for key in keys])
    return {str(name): accuracy(labels[names == name], predicted[names == name]) for name in np.unique(names)}


def class_scores(labels: Labels, predicted: Labels, n_classes: int) -> dict[str, Values]:
    """recall, precision and f1 of every class, each (C,); NaN without a clip, without a prediction, or without both."""
    numbers = list(range(n_classes))
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import, which training doesn't need

    found = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=np.nan)
    return {"recall": found[1], "precision": found[0], "f1": found[2]}


def clip_losses(labels: Labels, probabilities: Probabilities) -> Values:
    """Cross-entropy (n,) of each clip in nats; probabilities are clipped at the precision of float32."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(chosen.clip(np.finfo(np.float32).eps))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean cross-entropy in nats."""
    return float(clip_losses(labels, probabilities).mean())


@dataclass(frozen=True)
class Reliability:
    """Confidence and correctness of guesses, in bins of equal width (Guo et al. 2017, section 2).

    Single-label: a guess is the largest probability of a clip. Multi-label: every probability is a guess, right where
    the clip has the class.
    """

    bins: NDArray[np.int64]
    """Bin number (n,) of every guess."""
    confidence: Values
    """(n,)"""
    right: Values
    """(n,), 1 or 0."""
    n_bins: int = N_BINS

    def gaps(self) -> Values:
        """Confidence minus correctness (n, n_bins), in the column of each guess's bin, as summed by the ECE."""
        return np.eye(self.n_bins)[self.bins] * (self.confidence - self.right)[:, None]

    def table(self) -> dict[str, list[float | None]]:
        """By bin: number of guesses (count), mean confidence and share that is right, None in an empty bin."""
        count = np.bincount(self.bins, minlength=self.n_bins)
        sums = {
            "confidence": np.bincount(self.bins, self.confidence, self.n_bins),
            "right": np.bincount(self.bins, self.right, self.n_bins),
        }
        means = {
            name: [float(one / n) if n else None for one, n in zip(total, count, strict=True)]
            for name, total in sums.items()
        }
        return {"count": count.tolist(), **means}


def reliability(confidence: Values, right: NDArray[np.generic], n_bins: int = N_BINS) -> Reliability:
    """Assign guesses (n,) to bins; a confidence of 1 belongs to the last."""
    bins = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    return Reliability(bins, confidence.astype(np.float64), right.astype(np.float64), n_bins)


def top_reliability(labels: Labels, probabilities: Probabilities, n_bins: int = N_BINS) -> Reliability:
    """The largest probability of each clip, and whether it is the label's."""
    return reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, n_bins)


def ece(labels: Labels, probabilities: Probabilities, n_bins: int = N_BINS) -> float:
    """Expected calibration error of the most probable classes (Guo et al. 2017, section 2)."""
    return calibration_error(top_reliability(labels, probabilities, n_bins))


def calibration_error(found: Reliability) -> float:
    """Expected calibration error: the gap between confidence and accuracy of each bin, averaged over the guesses."""
    return float(np.abs(found.gaps().sum(axis=0)).sum() / len(found.bins))


# Multi-label ----------------------------------------------------------------------------------------------------------


def average_precision(truth: Truth, probabilities: Probabilities) -> NDArray[np.float64]:
    """Average precision of every class (C,), the area under its precision-recall curve; NaN without a clip.

    Not interpolated, as in scikit-learn and in published AudioSet results.
    """
    from sklearn.metrics import average_precision_score

    found = np.full(truth.shape[1], np.nan)
    for number in np.flatnonzero(truth.any(axis=0)):
        found[number] = average_precision_score(truth[:, number], probabilities[:, number])
    return found


def mean_average_precision(truth: Truth, probabilities: Probabilities) -> float:
    """mAP: mean average precision over the classes that have a clip; ValueError if none has one."""
    if not truth.any():
        raise ValueError("no clip has a class, so there is no average precision")
    return float(np.nanmean(average_precision(truth, probabilities)))


def binary_log_loss(truth: Truth, probabilities: Probabilities) -> float:
    """Mean binary cross-entropy over clips and classes in nats, clipped at the precision of float32."""
    right = np.where(truth > 0, probabilities, 1 - probabilities.astype(np.float64))
    return float(-np.log(right.clip(np.finfo(np.float32).eps)).mean())


def weighted_average_precision(
    truth: NDArray[np.floating], scores: NDArray[np.floating], weights: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Average precision (R,) of one class, with truth and scores (n,), for R sets of clip weights (n, R).

    NaN where all clips of the class have weight 0. The same as scikit-learn's `average_precision_score` with
    sample_weight, but sorts only once for all weights.
    """
    order = np.argsort(-scores, kind="stable")
    mine = order[truth[order] > 0]
    # number of clips with at least the score of each clip of the class
    above = np.searchsorted(-scores[order], -scores[mine], side="right")
    above, first = np.unique(above, return_index=True)
    taken = np.cumsum(np.add.reduceat(weights[order[: above[-1]]], np.append(0, above[:-1]), axis=0), axis=0)
    gained = np.add.reduceat(weights[mine], first, axis=0)
    right = np.cumsum(gained, axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gained * right / np.maximum(taken, 1)).sum(axis=0) / right[-1])
