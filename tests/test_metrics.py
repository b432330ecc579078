"""Metrics against hand-worked cases and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from raymae.metrics import (
    accuracy,
    accuracy_by,
    confusion_matrix,
    ece,
    log_loss,
    macro_accuracy,
    macro_accuracy_interval,
    missing_classes,
)

TRUTH = np.array([0, 0, 0, 0, 2, 2])
GUESS = np.array([0, 0, 0, 1, 2, 3])


def test_by_hand() -> None:
    assert accuracy(TRUTH, GUESS) == pytest.approx(4 / 6)
    assert macro_accuracy(TRUTH, GUESS) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert missing_classes(TRUTH, ["a", "b", "c", "d"]) == ["b", "d"]
    assert confusion_matrix(TRUTH, GUESS, 4).tolist() == [[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert accuracy_by(TRUTH, GUESS, ["s1", "a", "a", "a", None, "s1"]) == pytest.approx(
        {"a": 2 / 3, "s1": 1 / 2, "unknown": 1}
    )


def test_log_loss_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]], np.float32)
    assert log_loss(np.array([0, 1, 0]), probabilities) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 3)
    assert np.isfinite(log_loss(np.array([1, 1, 1]), probabilities))


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 0])
    # Bins: two clips at 0.9 of which half are right, one at 0.6 that is right, one at 1 that is right.
    assert ece(labels, probabilities) == pytest.approx((2 * 0.4 + 0.4 + 0) / 4)


@st.composite
def guesses(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    pairs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60))
    return np.array([truth for truth, _ in pairs]), np.array([guess for _, guess in pairs])


@given(guesses())
def test_agrees_with_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, guess = pair
    present = np.unique(truth)
    recall = sklearn.metrics.recall_score(truth, guess, labels=present, average="macro", zero_division=0)
    assert macro_accuracy(truth, guess) == pytest.approx(recall)
    expected = sklearn.metrics.confusion_matrix(truth, guess, labels=range(6))
    np.testing.assert_array_equal(confusion_matrix(truth, guess, 6), expected)


def clips(rng: np.random.Generator, groups: int, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Groups of one of four classes, each of whose clips are all right or all wrong."""
    label = np.repeat(np.arange(groups) % 4, size)
    right = np.repeat(rng.random(groups) < 0.7, size)
    return label, np.where(right, label, (label + 1) % 4), np.repeat([f"g{i}" for i in range(groups)], size).tolist()


def test_interval_holds_the_truth_and_depends_on_groups_alone() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        label, guess, group = clips(rng, 80, 1)
        low, high = macro_accuracy_interval(label, guess, group, resamples=200)
        held += low <= 0.7 <= high
    assert held >= 34
    copies = [np.repeat(part, 10) for part in (label, guess, group)]
    assert macro_accuracy_interval(*copies, resamples=200) == pytest.approx((low, high))
    single = macro_accuracy_interval(*copies[:2], [str(i) for i in range(800)], resamples=200)
    assert single[1] - single[0] < 0.5 * (high - low)


def test_interval_needs_groups_of_every_class() -> None:
    rng = np.random.default_rng(0)
    assert macro_accuracy_interval(*clips(rng, 20, 3)) is not None
    assert macro_accuracy_interval(*clips(rng, 19, 3)) is None
