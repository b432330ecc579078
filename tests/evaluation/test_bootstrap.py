"""Bootstrap and permutation tests over groups, on cases with known results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.evaluation.bootstrap import (
    bootstrap,
    drawn_weights,
    enough_groups,
    group_numbers,
    group_totals,
    p_value,
    signs,
)


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), st.integers(0, 100))
def test_totals_of_groups_sum_up_to_those_of_the_clips(groups: list[str], seed: int) -> None:
    values = np.random.default_rng(seed).integers(-5, 5, (len(groups), 3))
    group = group_numbers(groups)
    totals = group_totals(group, values)
    assert totals.shape == (len(set(groups)), 3)
    np.testing.assert_array_equal(totals.sum(0), values.sum(0))
    first = np.array(groups) == groups[0]
    np.testing.assert_array_equal(totals[group[0]], values[first].sum(0))


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 100))
def test_as_many_groups_are_drawn_as_there_are(n_groups: int, resamples: int, seed: int) -> None:
    weights = drawn_weights(n_groups, resamples, seed)
    assert weights.shape == (resamples, n_groups)
    assert (weights.sum(1) == n_groups).all()


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    totals = np.hstack([values, np.ones((400, 1))])
    low, high = bootstrap(totals, lambda sums: sums[:, :1] / sums[:, 1:])[:, 0]
    error = values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.4 * error)


def test_draws_without_a_clip_do_not_count() -> None:
    totals = np.array([[1.0, 1.0], [0.0, 0.0]])  # the second group has no clip: drawn twice, there is no mean
    np.testing.assert_array_equal(bootstrap(totals, lambda sums: sums[:, :1] / sums[:, 1:]), [[1.0], [1.0]])


def test_every_class_needs_five_groups() -> None:
    labels, group = np.repeat([0, 1], 5), np.arange(10)
    assert enough_groups(labels, group)
    assert not enough_groups(labels, np.append(np.arange(9), 8))
    assert not enough_groups(labels[1:], group[1:])


def test_p_values_are_uniform_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        parts = rng.normal(size=30)
        found.append(p_value(parts.sum(), signs(30, 400, seed) @ parts))
    assert np.mean(np.array(found) < 0.05) < 0.1
    assert 0.4 < np.mean(found) < 0.6


def test_a_p_value_is_never_zero() -> None:
    assert p_value(10.0, np.zeros(99)) == 0.01
    assert p_value(0.0, np.zeros(99)) == 1.0
