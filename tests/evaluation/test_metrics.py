"""Metrics against cases worked by hand and scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.evaluation.confidence_intervals import average_precision_intervals, macro_accuracy_interval
from raymae.evaluation.metrics import (
    accuracy,
    accuracy_by,
    average_precision,
    binary_log_loss,
    confusion_matrix,
    ece,
    log_loss,
    macro_accuracy,
    mean_average_precision,
    missing_classes,
    weighted_average_precision,
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


# Multi-label ----------------------------------------------------------------------------------------------------------


@st.composite
def tagged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Multi-hot truth and scores with ties; every clip has a class, some classes may have no clip."""
    clips, classes = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    truth = (rng.random((clips, classes)) < draw(st.integers(0, 6)) / 10).astype(np.float32)
    truth[np.arange(clips), rng.integers(classes, size=clips)] = 1
    return truth, rng.integers(0, draw(st.integers(1, 20)), (clips, classes)) / 20


@settings(max_examples=40)
@given(tagged())
def test_map_is_scikit_learns_over_the_classes_that_have_a_clip(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = pair
    present = truth.any(axis=0)
    found = average_precision(truth, scores)
    np.testing.assert_array_equal(np.isnan(found), ~present)
    expected = sklearn.metrics.average_precision_score(truth[:, present], scores[:, present], average="macro")
    assert mean_average_precision(truth, scores) == pytest.approx(expected)


@settings(max_examples=40)
@given(tagged())
def test_a_perfect_order_has_map_1_and_no_order_the_share_of_the_class(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = pair
    assert mean_average_precision(truth, truth + 0.5 * scores) == pytest.approx(1)
    present = truth.any(axis=0)
    flat = average_precision(truth, np.zeros_like(truth))
    np.testing.assert_allclose(flat[present], truth[:, present].mean(axis=0))


@settings(max_examples=40)
@given(tagged(), st.integers(0, 100))
def test_weighted_average_precision_is_scikit_learns(pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    truth, scores = pair[0][:, 0], pair[1][:, 0]
    if not truth.any():
        return
    weights = np.random.default_rng(seed).integers(0, 4, size=(len(truth), 3))
    for found, weight in zip(weighted_average_precision(truth, scores, weights), weights.T, strict=True):
        if not weight[truth > 0].any():
            assert np.isnan(found)
        else:
            expected = sklearn.metrics.average_precision_score(truth, scores, sample_weight=weight)
            assert found == pytest.approx(expected)


def test_map_without_any_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="no clip has a class"):
        mean_average_precision(np.zeros((3, 2)), np.ones((3, 2)))


def test_binary_log_loss_by_hand() -> None:
    truth, probabilities = np.array([[1, 0], [0, 1]]), np.array([[0.5, 0.25], [0.0, 1.0]], np.float32)
    assert binary_log_loss(truth, probabilities) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 4)
    assert np.isfinite(binary_log_loss(1 - truth, probabilities))


def test_the_interval_of_map_holds_what_sets_of_this_size_give() -> None:
    rng = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        truth = (rng.random((200, 4)) < 0.15).astype(np.float32)
        return truth, truth + rng.normal(size=truth.shape)

    expected = np.mean([mean_average_precision(*draw()) for _ in range(200)])
    held = 0
    for _ in range(40):
        low, high = average_precision_intervals(*draw(), [str(number) for number in range(200)])[0]
        held += low <= expected <= high
    assert held >= 34


def test_the_interval_of_map_holds_the_figure_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((2000, 100)) < 0.01).astype(np.float32)
    truth[np.arange(2000), np.arange(2000) % 100] = 1
    scores = truth + rng.normal(size=truth.shape)
    low, high = average_precision_intervals(truth, scores, [str(number) for number in range(2000)])[0]
    assert low < mean_average_precision(truth, scores) < high


def test_the_interval_of_map_is_of_groups_and_needs_some_of_every_class() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(3)[np.arange(60) % 3] + np.eye(3)[(np.arange(60) // 3) % 3] > 0
    scores = truth + rng.normal(scale=0.8, size=truth.shape)
    group = [f"g{number}" for number in range(60)]
    low, high = average_precision_intervals(truth, scores, group)[0]
    assert low < mean_average_precision(truth, scores) < high
    copies = average_precision_intervals(np.repeat(truth, 5, 0), np.repeat(scores, 5, 0), np.repeat(group, 5))[0]
    assert copies == pytest.approx((low, high))
    truth[:, 2] = np.arange(60) < 4
    assert average_precision_intervals(truth, scores, group)[0] is None
    assert average_precision_intervals(np.delete(truth, 2, 1), np.delete(scores, 2, 1), group)[0] is not None
    truth[:, 2] = False  # a class without a clip doesn't count
    assert average_precision_intervals(truth, scores, group)[0] is not None
