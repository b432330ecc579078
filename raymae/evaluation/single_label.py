"""Scores of single-label clips, macro accuracy first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.labels import target_matrix
from raymae.evaluation.confidence_intervals import class_intervals, ece_interval, macro_accuracy_interval, mean_interval
from raymae.evaluation.metrics import (
    accuracy,
    calibration_error,
    class_scores,
    clip_losses,
    confusion_matrix,
    macro_accuracy,
    missing_classes,
    top_reliability,
)
from raymae.evaluation.paired_test import Difference, macro_accuracy_difference

HEADLINE = "macro_accuracy"
TITLE = "Macro accuracy"
MEANING = "Mean of the classes' recalls"
BY_DOMAIN = "accuracy"
"""Score by device and city, where not all classes may occur."""

Truth = NDArray[np.int64]
Probabilities = NDArray[np.float32]


def truth_of(clips: pa.Table, class_names: Sequence[str]) -> Truth:
    """Class numbers (n,); ValueError for a label that is not one of the classes."""
    return np.asarray(target_matrix(clips["scene_label"], class_names, "single").argmax(axis=1), np.int64).ravel()


def scores(truth: Truth, probabilities: Probabilities, groups: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """All scores of the clips of a split; keys: see `scores.evaluation`."""
    guess, bins = probabilities.argmax(axis=1), top_reliability(truth, probabilities)
    losses = clip_losses(truth, probabilities)
    return {
        **domain_scores(truth, probabilities, groups),
        "log_loss": float(losses.mean()),
        "log_loss_ci": mean_interval(losses, truth, groups),
        "ece": calibration_error(bins),
        "ece_ci": ece_interval(bins, truth, groups),
        "reliability": bins.table(),
        "missing_classes": missing_classes(truth, names),
        "by_class": _by_class(truth, guess, groups, names),
        "confusion": confusion_matrix(truth, guess, len(names)).tolist(),
    }


def domain_scores(truth: Truth, probabilities: Probabilities, groups: Sequence[str]) -> dict[str, Any]:
    """The scores of a part of a split: clips, groups, macro accuracy and accuracy with their intervals."""
    guess = probabilities.argmax(axis=1)
    return {
        "clips": len(truth),
        "groups": len(set(groups)),
        "macro_accuracy": macro_accuracy(truth, guess),
        "macro_accuracy_ci": macro_accuracy_interval(truth, guess, groups),
        "accuracy": accuracy(truth, guess),
        "accuracy_ci": mean_interval((truth == guess).astype(np.float64), truth, groups),
    }


def _by_class(truth: Truth, guess: Truth, groups: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    values, intervals = class_scores(truth, guess, len(names)), class_intervals(truth, guess, groups, len(names))
    found: dict[str, dict[str, Any]] = {}
    group = np.asarray(groups)
    for number, name in enumerate(names):
        mine = truth == number
        found[name] = {"clips": int(mine.sum()), "groups": len(set(group[mine].tolist()))}
        for key in ("recall", "precision", "f1"):
            value = float(values[key][number])
            found[name] |= {key: None if np.isnan(value) else value, f"{key}_ci": intervals[key][number]}
    return found


def mistakes(truth: Truth, probabilities: Probabilities, names: Sequence[str]) -> list[dict[str, Any]]:
    """Wrong predictions, most confident first: row of the clip, true and predicted class, confidence."""
    guess, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = order[guess[order] != truth[order]]
    return [
        {
            "row": int(row),
            "true": names[truth[row]],
            "predicted": names[guess[row]],
            "confidence": float(confidence[row]),
        }
        for row in wrong
    ]


def difference(truth: Truth, first: Probabilities, second: Probabilities, groups: Sequence[str]) -> Difference:
    """Difference of two models' macro accuracy, first minus second."""
    return macro_accuracy_difference(truth, first.argmax(axis=1), second.argmax(axis=1), groups)
