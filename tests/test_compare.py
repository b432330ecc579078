"""Paired differences and their p-values, where the right answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.compare import macro_accuracy_difference, mean_average_precision_difference
from raymae.metrics import macro_accuracy, mean_average_precision
from raymae.resampling import drawn_weights, p_value


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
    """Under the null, p is below 0.1 in a tenth of the cases, though clips of a group go together."""
    ps = [macro_accuracy_difference(*draw(seed, 30, 8, 0.6, 0.6), permutations=500).p_value for seed in range(200)]
    assert 0.03 < np.mean(np.array(ps) <= 0.1) < 0.17


def test_clips_without_groups_would_be_far_too_sure() -> None:
    """What the test of groups is for: the same guesses, each clip taken for a group, find differences everywhere."""
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
