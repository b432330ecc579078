"""Intervals of all scores but macro accuracy and mAP, which are tested with the metrics."""

import numpy as np
import pytest

from raymae.evaluation.confidence_intervals import (
    average_precision_intervals,
    class_intervals,
    ece_interval,
    mean_interval,
)
from raymae.evaluation.metrics import class_scores, ece, top_reliability


def clips(seed: int, groups: int, size: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of one of three classes: labels, guesses that are right for whole groups or not at all, group numbers."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups) % 3, size)
    right = np.repeat(rng.random(groups) < 0.7, size)
    return label, np.where(right, label, (label + 1) % 3), np.repeat(np.arange(groups), size)


def test_the_interval_of_accuracy_holds_the_truth_and_depends_on_groups_alone() -> None:
    held = 0
    for seed in range(40):
        label, guess, groups = clips(seed, 60)
        low, high = mean_interval((label == guess).astype(float), label, groups)
        held += low <= 0.7 <= high
    assert held >= 34
    copies = [np.repeat(one, 10) for one in (label, guess, groups)]
    assert mean_interval((copies[0] == copies[1]).astype(float), copies[0], copies[2]) == pytest.approx((low, high))
    assert mean_interval(np.ones(14), np.arange(14) % 3, np.arange(14)) is None


def test_class_intervals_hold_the_figures_and_need_groups_of_the_class_alone() -> None:
    label, guess, groups = clips(0, 60, 3)
    few = label != 2
    few[np.flatnonzero(label == 2)[:12]] = True  # of class 2 four groups
    label, guess, groups = label[few], guess[few], groups[few]
    found, figures = class_intervals(label, guess, groups, 4), class_scores(label, guess, 4)
    for name, intervals in found.items():
        assert intervals[2] is None  # too few groups
        assert intervals[3] is None  # no clip
        for low_high, figure in zip(intervals[:2], figures[name][:2], strict=True):
            assert low_high[0] < figure < low_high[1]
    assert class_intervals(label[:3], guess[:3], groups[:3], 4)["recall"] == [None] * 4


def test_a_class_that_is_never_predicted_has_precision_0_in_every_draw() -> None:
    label, groups = np.arange(20) % 2, np.arange(20)
    found = class_intervals(label, np.zeros(20, int), groups, 2)
    assert (found["recall"], found["precision"][1], found["f1"][1]) == ([(1, 1), (0, 0)], (0, 0), (0, 0))


def test_the_interval_of_the_calibration_error_holds_it() -> None:
    rng = np.random.default_rng(0)
    label, guess, groups = clips(0, 90, 2)
    probabilities = np.full((180, 3), 0.05)
    probabilities[np.arange(180), guess] = 0.9
    bins = top_reliability(label, probabilities)
    low, high = ece_interval(bins, label, groups)
    assert 0 <= low < ece(label, probabilities) < high <= 1
    calibrated = rng.random((3000, 3))
    calibrated /= calibrated.sum(axis=1, keepdims=True)
    truth = (rng.random(3000)[:, None] > np.cumsum(calibrated, axis=1)).sum(axis=1)
    low, high = ece_interval(top_reliability(truth, calibrated), truth, np.arange(3000))
    assert low < ece(truth, calibrated) < high < 0.1


def test_average_precision_of_a_class_needs_groups_of_that_class_alone() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(3)[np.arange(60) % 3]
    truth[:, 2] = np.arange(60) < 4
    scores = truth + rng.normal(scale=0.7, size=truth.shape)
    whole, by_class = average_precision_intervals(truth, scores, np.arange(60))
    assert whole is None
    assert by_class[2] is None
    assert all(0 <= low < high <= 1 for low, high in by_class[:2])


def test_reliability_counts_every_guess_once() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6], [1.0, 0.0]])
    table = top_reliability(np.array([0, 1, 1, 0]), probabilities, 10).table()
    assert table["count"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert table["confidence"][9] == pytest.approx((0.95 + 0.95 + 1) / 3)
    assert table["right"][9] == pytest.approx(2 / 3)
    assert table["right"][:6] == [None] * 6
