"""Scores of multi-label clips, mAP first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.labels import target_matrix
from raymae.evaluation.confidence_intervals import average_precision_intervals
from raymae.evaluation.metrics import average_precision, binary_log_loss, calibration_error, reliability
from raymae.evaluation.paired_test import Difference, mean_average_precision_difference

HEADLINE = "mAP"
TITLE = "mAP"
MEANING = "Mean over the classes of their average precision"
BY_DOMAIN = "mAP"
"""Score by device and city, over the classes that occur there."""

Truth = NDArray[np.float32]
Probabilities = NDArray[np.float32]


def truth_of(clips: pa.Table, class_names: Sequence[str]) -> Truth:
    """Multi-hot targets (n, C); ValueError for a label that is not one of the classes."""
    return np.asarray(target_matrix(clips["scene_label"], class_names, "multi").toarray(), np.float32)


def scores(truth: Truth, probabilities: Probabilities, groups: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """All scores of the clips of a split; keys: see `scores.evaluation`."""
    by_class, (interval, intervals) = (
        average_precision(truth, probabilities),
        average_precision_intervals(truth, probabilities, groups),
    )
    bins = reliability(probabilities.ravel().astype(np.float64), truth.ravel() > 0)
    group = np.asarray(groups)
    return {
        "clips": len(truth),
        "groups": len(set(groups)),
        "mAP": _mean(by_class),
        "mAP_ci": interval,
        "log_loss": binary_log_loss(truth, probabilities),
        "ece": calibration_error(bins),
        "reliability": bins.table(),
        "missing_classes": [name for name, value in zip(names, by_class, strict=True) if np.isnan(value)],
        "by_class": {
            name: {
                "clips": int(truth[:, number].sum()),
                "groups": len(set(group[truth[:, number] > 0].tolist())),
                "average_precision": None if np.isnan(by_class[number]) else float(by_class[number]),
                "average_precision_ci": intervals[number],
            }
            for number, name in enumerate(names)
        },
    }


def domain_scores(truth: Truth, probabilities: Probabilities, groups: Sequence[str]) -> dict[str, Any]:
    """The scores of a part of a split: clips, groups, mAP and its interval."""
    return {
        "clips": len(truth),
        "groups": len(set(groups)),
        "mAP": _mean(average_precision(truth, probabilities)),
        "mAP_ci": average_precision_intervals(truth, probabilities, groups)[0],
    }


def _mean(by_class: NDArray[np.float64]) -> float:
    return float(np.nanmean(by_class))  # labelled clips have classes, so not all are NaN


def mistakes(truth: Truth, probabilities: Probabilities, names: Sequence[str]) -> list[dict[str, Any]]:
    """Wrong classes with a probability of at least one half, most confident first: row, true, predicted, confidence."""
    absent = np.where(truth > 0, 0, probabilities)
    rows, numbers = np.nonzero(absent >= 0.5)
    order = np.argsort(-absent[rows, numbers], kind="stable")
    found = []
    for row, number in zip(rows[order], numbers[order], strict=True):
        true = ";".join(name for name, there in zip(names, truth[row], strict=True) if there)
        confidence = float(absent[row, number])
        found.append({"row": int(row), "true": true, "predicted": names[number], "confidence": confidence})
    return found


def difference(truth: Truth, first: Probabilities, second: Probabilities, groups: Sequence[str]) -> Difference:
    """Difference of two models' mAP, first minus second."""
    return mean_average_precision_difference(truth, first, second, groups)
