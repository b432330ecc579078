"""Acceptance: the rules worked by hand and by their properties, limits that hold, reasons of refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.config import PseudoLabelConfig
from raymae.pseudo_labels.acceptance import (
    Acceptance,
    decide,
    flexmatch_thresholds,
    freematch_thresholds,
    ranks,
    reason_texts,
)
from tests.support.pseudo_labels import (
    CLASSES,
    FREEMATCH,
    coverage,
    flexmatch,
    in_groups,
    probabilities,
    shares,
    threshold,
)

configs = st.one_of(
    st.builds(threshold, shares), st.builds(coverage, shares), st.builds(flexmatch, shares), st.just(FREEMATCH)
)


def decided(values: NDArray[np.float32], config: PseudoLabelConfig) -> Acceptance:
    return decide(values, in_groups(len(values)), config)


# Rules ---------------------------------------------------------------------------------------------------------------


@given(values=probabilities, least=shares)
def test_a_threshold_accepts_what_reaches_it(values: NDArray[np.float32], least: float) -> None:
    found = decided(values, threshold(least))
    assert found.accepted.tolist() == [bool(value >= np.float32(least)) for value in values.max(1)]
    assert found.thresholds is not None
    np.testing.assert_array_equal(found.thresholds, np.full(CLASSES, least, np.float32))


@given(values=probabilities, share=shares)
def test_coverage_accepts_a_share_of_every_predicted_class(values: NDArray[np.float32], share: float) -> None:
    guess, confidence = values.argmax(1), values.max(1)
    found = decided(values, coverage(share))
    assert found.thresholds is None
    for label in np.unique(guess):
        mine = guess == label
        assert int((found.accepted & mine).sum()) == max(1, round(share * int(mine.sum())))
        refused = confidence[mine & ~found.accepted]
        assert not len(refused) or confidence[mine & found.accepted].min() >= refused.max()


@given(values=probabilities, first=shares, second=shares)
def test_more_coverage_or_a_lower_threshold_only_adds(values: NDArray[np.float32], first: float, second: float) -> None:
    low, high = sorted([first, second])
    assert not (decided(values, coverage(low)).accepted & ~decided(values, coverage(high)).accepted).any()
    assert not (decided(values, threshold(high)).accepted & ~decided(values, threshold(low)).accepted).any()


def test_flexmatch_by_hand() -> None:
    # guesses of class a: .95 .92 .85, of b: .91 .7, of c: .6; tau = .9 is reached by two of a, one of b, none of c
    values = np.array(
        [
            [0.95, 0.03, 0.02],
            [0.92, 0.05, 0.03],
            [0.85, 0.1, 0.05],
            [0.05, 0.91, 0.04],
            [0.2, 0.7, 0.1],
            [0.3, 0.1, 0.6],
        ],
        np.float32,
    )
    # beta = 1, 1/2, 0; M(x) = x/(2 - x) = 1, 1/3, 0
    np.testing.assert_allclose(flexmatch_thresholds(values, 0.9, 0.0), [0.9, 0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(flexmatch_thresholds(values, 0.9, 0.5), [0.9, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(flexmatch_thresholds(values, 0.9, 0.95), [0.9] * 3, rtol=1e-6)
    found = decided(values, flexmatch(0.9))
    assert found.accepted.tolist() == [True, True, False, True, True, True]
    assert found.reasons.tolist() == ["", "", "threshold", "", "", ""]
    texts = reason_texts(found, values.argmax(1), flexmatch(0.9))
    assert texts[2] == "confidence below 0.9000, the threshold of its class (flexmatch)"
    # if no class is learned, no guess is accepted
    assert not decided(values, flexmatch(0.96)).accepted.any()


def test_flexmatch_refuses_guesses_of_an_unlearned_class_that_are_likely_wrong() -> None:
    values = np.array([[0.95, 0.03, 0.02], [0.3, 0.31, 0.39], [0.2, 0.25, 0.55]], np.float32)
    assert decided(values, flexmatch(0.9)).accepted.tolist() == [True, False, True]
    assert decided(values, replace(flexmatch(0.9), threshold_floor=0.0)).accepted.all()
    with pytest.raises(ValueError, match=r"threshold_floor = 0\.2 has no effect with pseudo_label.rule = fixed"):
        PseudoLabelConfig(threshold_floor=0.2)


def test_freematch_by_hand() -> None:
    # mean confidence (.8 + .6 + .5 + .7) / 4 = .65; mean probabilities a (.8 + .6 + .3 + .2) / 4 = .475,
    # b (.1 + .3 + .5 + .1) / 4 = .25, c (.1 + .1 + .2 + .7) / 4 = .275
    values = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.2, 0.1, 0.7]], np.float32)
    expected = [0.65, 0.65 * 0.25 / 0.475, 0.65 * 0.275 / 0.475]  # .65, .342, .376
    np.testing.assert_allclose(freematch_thresholds(values), expected, rtol=1e-6)
    found = decided(values, FREEMATCH)
    assert found.accepted.tolist() == [True, False, True, True]
    texts = reason_texts(found, values.argmax(1), FREEMATCH)
    assert texts == ["", "confidence below 0.6500, the threshold of its class (freematch)", "", ""]


@given(values=probabilities, config=configs, seed=st.integers(0, 99))
def test_other_names_of_the_classes_change_nothing(
    values: NDArray[np.float32], config: PseudoLabelConfig, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(CLASSES)
    found, again = decided(values, config), decided(np.ascontiguousarray(values[:, order]), config)
    near = np.zeros(len(values), bool)  # a mean over the classes in another order rounds otherwise
    if found.thresholds is not None and again.thresholds is not None and len(values):
        np.testing.assert_allclose(again.thresholds, found.thresholds[order], rtol=1e-5)
        near = np.abs(values.max(1) - found.thresholds[values.argmax(1)]) < 1e-5
    np.testing.assert_array_equal((found.accepted == again.accepted) | near, True)


@given(values=probabilities, config=configs, seed=st.integers(0, 99))
def test_the_order_of_the_clips_does_not_matter(
    values: NDArray[np.float32], config: PseudoLabelConfig, seed: int
) -> None:
    values = values[np.unique(values.max(1), return_index=True)[1]]  # ties are broken by the order
    shuffled = np.random.default_rng(seed).permutation(len(values))
    found, again = decided(values, config), decided(values[shuffled], config)
    near = np.zeros(len(values), bool)
    if found.thresholds is not None and len(values):
        near = np.abs(values.max(1) - found.thresholds[values.argmax(1)]) < 1e-5
    np.testing.assert_array_equal((again.accepted == found.accepted[shuffled]) | near[shuffled], True)


# Limits --------------------------------------------------------------------------------------------------------------


@given(
    values=probabilities,
    config=configs,
    per_class=st.none() | st.integers(1, 9),
    per_group=st.none() | st.integers(1, 4),
    ratio=st.none() | st.floats(1, 3),
)
def test_limits_hold_and_the_surest_stay(
    values: NDArray[np.float32],
    config: PseudoLabelConfig,
    per_class: int | None,
    per_group: int | None,
    ratio: float | None,
) -> None:
    limited = replace(config, max_per_class=per_class, max_per_group=per_group, max_class_ratio=ratio)
    free, found = decided(values, config), decided(values, limited)
    assert not (found.accepted & ~free.accepted).any()
    guess, groups, confidence = values.argmax(1), in_groups(len(values)), values.max(1)
    classes = np.unique(guess[found.accepted], return_counts=True)[1]
    by_group = np.unique(groups[found.accepted], return_counts=True)[1]
    assert per_class is None or classes.max(initial=0) <= per_class
    assert per_group is None or by_group.max(initial=0) <= per_group
    assert ratio is None or not len(classes) or classes.max() <= ratio * classes.min()
    assert found.accepted.any() == free.accepted.any()
    np.testing.assert_array_equal(found.accepted, found.reasons == "")
    for setting, keys in (("max_per_group", groups), ("max_per_class", guess), ("max_class_ratio", guess)):
        for place in [number for number, reason in enumerate(found.reasons) if reason == setting]:
            kept = found.accepted & (keys == keys[place])
            if setting != "max_per_group":  # the most confident of a group may be beyond the limit of its class
                assert confidence[kept].min() >= confidence[place]
    if limited == config:
        np.testing.assert_array_equal(found.accepted, free.accepted)


def test_every_refusal_has_its_reason() -> None:
    values = np.array([[0.99, 0.01], [0.98, 0.02], [0.97, 0.03], [0.96, 0.04], [0.05, 0.95], [0.6, 0.4]], np.float32)
    groups = np.array(["a", "a", "b", "c", "d", "e"], np.str_)
    config = PseudoLabelConfig(confidence_threshold=0.9, max_per_group=1, max_per_class=2, max_class_ratio=1)
    found = decide(values, groups, config)
    assert found.reasons.tolist() == ["", "max_per_group", "max_class_ratio", "max_per_class", "", "threshold"]
    assert reason_texts(found, values.argmax(1), config) == [
        "",
        "not among the 1 most confident of its group (max_per_group = 1)",
        "not among the 1 most confident of its class, 1 times the 1 of the smallest (max_class_ratio)",
        "not among the 2 most confident of its class (max_per_class = 2)",
        "",
        "confidence below 0.9",
    ]


def test_of_equals_the_first_comes_first() -> None:
    keys, confidence = np.array([1, 0, 1, 1, 0]), np.array([0.5, 0.9, 0.7, 0.5, 0.2], np.float32)
    assert ranks(keys, confidence, np.ones(5, bool)).tolist() == [1, 0, 0, 2, 1]
    assert ranks(keys, confidence, np.array([True, False, False, True, True])).tolist() == [0, 5, 5, 1, 0]


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"confidence_threshold": 1.0}, r"confidence_threshold = 1.0 must lie in \(0, 1\)"),
        ({"confidence_threshold": None, "coverage": 0.0}, r"coverage = 0.0 must lie in \(0, 1\]"),
        ({"coverage": 0.5}, "set one of .* the other to None"),
        ({"rule": "flexmatch", "confidence_threshold": None, "coverage": 0.5}, "flexmatch scales a threshold"),
        ({"rule": "freematch"}, "freematch finds its own thresholds"),
        ({"rule": "softmatch"}, "must be one of fixed, flexmatch, freematch"),
        ({"labels": "firm"}, "must be one of hard, soft"),
        ({"max_per_class": 0}, "max_per_class = 0 must be at least 1"),
        ({"max_per_group": -1}, "max_per_group = -1 must be at least 1"),
        ({"max_class_ratio": 0.5}, "max_class_ratio = 0.5 must be at least 1"),
        ({"views": -1}, "views = -1 must not be negative"),
        ({"rounds": 0}, "rounds = 0 must be at least 1"),
        ({"student_start": "continued"}, "no effect with pseudo_label.rounds = 1"),
    ],
)
def test_wrong_settings_are_refused(given_: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PseudoLabelConfig(**given_)  # type: ignore[arg-type]
