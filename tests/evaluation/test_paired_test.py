"""Paired differences and their p-values, on cases with known results."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.evaluation.bootstrap import drawn_weights, p_value
from raymae.evaluation.metrics import macro_accuracy, mean_average_precision
from raymae.evaluation.paired_test import holm, macro_accuracy_difference, mean_average_precision_difference


def draw(seed: int, n_groups: int, size: int, first: float, second: float) -> tuple[np.ndarray, ...]:
    """Labels, two models' guesses and groups; a group's clips are all right or all wrong."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_groups) % 3, size)
    guesses = []
    for share in (first, second):
        right = np.repeat(rng.random(n_groups) < share, size)
        guesses.append(np.where(right, labels, (labels + 1) % 3))
    return labels, *guesses, np.repeat([f"g{number}" for number in range(n_groups)], size)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_difference_is_that_of_the_scores_and_changes_sign(seed: int) -> None:
    labels, one, other, groups = draw(seed, 30, 4, 0.7, 0.5)
    found = macro_accuracy_difference(labels, one, other, groups, permutations=200)
    assert found.value == pytest.approx(macro_accuracy(labels, one) - macro_accuracy(labels, other))
    back = macro_accuracy_difference(labels, other, one, groups, permutations=200)
    assert back.value == pytest.approx(-found.value)
    assert found.groups == 30
    assert 0 < found.p_value <= 1


def test_equal_models_differ_by_chance_as_often_as_p_says() -> None:
    """Under the null hypothesis p is below 0.1 in a tenth of the cases, although the clips of a group are dependent."""
    ps = [macro_accuracy_difference(*draw(seed, 30, 8, 0.6, 0.6), permutations=500).p_value for seed in range(200)]
    assert 0.03 < np.mean(np.array(ps) <= 0.1) < 0.17


def test_without_groups_p_values_would_be_far_too_small() -> None:
    """Why whole groups are exchanged: with every clip as its own group, equal models often seem to differ."""
    ps = []
    for seed in range(60):
        labels, one, other, _ = draw(seed, 30, 8, 0.6, 0.6)
        alone = [str(number) for number in range(len(labels))]
        ps.append(macro_accuracy_difference(labels, one, other, alone, permutations=500).p_value)
    assert np.mean(np.array(ps) <= 0.1) > 0.3


def test_a_better_model_is_found() -> None:
    found = macro_accuracy_difference(*draw(0, 90, 4, 0.9, 0.4))
    assert found.p_value < 0.001
    assert found.interval is not None
    assert 0.2 < found.interval[0] < found.value < found.interval[1] < 0.8
    few = macro_accuracy_difference(*draw(0, 9, 4, 0.9, 0.4))
    assert few.interval is None


def test_map_differs_as_its_two_figures_do() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((120, 3)) < 0.3).astype(np.float32)
    one, other = truth + rng.normal(scale=0.5, size=truth.shape), truth + rng.normal(scale=3, size=truth.shape)
    groups = [f"g{number // 3}" for number in range(120)]
    found = mean_average_precision_difference(truth, one, other, groups, draws=200)
    assert found.value == pytest.approx(mean_average_precision(truth, one) - mean_average_precision(truth, other))
    assert found.p_value == pytest.approx(1 / 201)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    same = mean_average_precision_difference(truth, one, one, groups, draws=100)
    assert same.value == 0
    assert same.p_value == 1


def test_draws_have_as_many_groups_as_there_are() -> None:
    weights = drawn_weights(17, 50, 3)
    assert (weights.sum(axis=1) == 17).all()
    assert p_value(0.5, np.zeros(9)) == pytest.approx(0.1)


def test_the_p_value_is_that_of_all_exchanges() -> None:
    labels, one, other, groups = draw(3, 9, 2, 0.9, 0.3)
    found, number = macro_accuracy_difference(labels, one, other, groups), np.repeat(np.arange(9), 2)
    exchanged = []
    for swap in product([False, True], repeat=9):
        mine = np.array(swap)[number]
        first, second = np.where(mine, other, one), np.where(mine, one, other)
        exchanged.append(macro_accuracy(labels, first) - macro_accuracy(labels, second))
    exact = np.mean(np.abs(exchanged) >= abs(found.value) - 1e-9)
    assert 0.005 < exact < 0.5
    assert found.p_value == pytest.approx(exact, abs=0.02)


def test_more_clips_of_the_same_groups_are_no_further_evidence() -> None:
    few = macro_accuracy_difference(*draw(0, 24, 1, 0.8, 0.5))
    many = macro_accuracy_difference(*(np.repeat(one, 20) for one in draw(0, 24, 1, 0.8, 0.5)))
    assert (many.value, many.p_value) == pytest.approx((few.value, few.p_value))
    assert many.interval == pytest.approx(few.interval)


def test_the_exchange_of_scores_by_hand() -> None:
    """With two groups there are two distinct exchanges, of no group and of one; the first gives the difference."""
    truth = np.array([[1], [0], [1], [0]], np.float32)
    one, other = np.array([[0.9], [0.1], [0.8], [0.2]]), np.array([[0.3], [0.6], [0.4], [0.7]])
    first = np.array([[True], [True], [False], [False]])
    mixed = [np.where(first, one, other), np.where(first, other, one)]
    half = mean_average_precision(truth, mixed[0]) - mean_average_precision(truth, mixed[1])
    assert abs(half) < mean_average_precision(truth, one) - mean_average_precision(truth, other)
    found = mean_average_precision_difference(truth, one, other, ["a", "a", "b", "b"], draws=999)
    assert found.p_value == pytest.approx(0.5, abs=0.06)
    assert found.interval is None


def test_p_values_of_map_are_not_small_by_chance() -> None:
    small = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = np.repeat(rng.random((25, 3)) < 0.4, 2, axis=0).astype(np.float32)
        truth[0] = 1
        one, other = (truth + rng.normal(size=truth.shape) for _ in range(2))
        groups = np.repeat(np.arange(25), 2).tolist()
        small += mean_average_precision_difference(truth, one, other, groups, draws=100).p_value < 0.05
    assert small <= 6


def test_holms_correction_by_hand() -> None:
    """Holm 1979: .01 x 4, .02 x 3, .03 x 2 and, since corrected values don't fall, not .04 x 1."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.3, 0.6]) == pytest.approx([0.6, 0.6])
    assert holm([0.7]) == [0.7]
    assert holm([]) == []


def test_tests_without_an_effect_rarely_find_one_when_corrected() -> None:
    """Of 1,000 families of ten, 5 % and not 40 % have any p of at most .05."""
    families = np.random.default_rng(0).uniform(size=(1000, 10))
    assert np.mean(families.min(axis=1) <= 0.05) > 0.35
    assert np.mean([min(holm(family.tolist())) <= 0.05 for family in families]) == pytest.approx(0.05, abs=0.02)
