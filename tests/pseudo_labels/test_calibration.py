"""Calibration finds a known over-confidence on val or by the accuracy of a probe, or gives the reason why it can't."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymae.pseudo_labels.calibration import (
    BOUNDS,
    MIN_GROUPS,
    apply_temperature,
    calibrated_by_probe,
    calibrated_on_val,
    cross_fit_problem,
    fit_temperature,
    match_temperature,
    val_problem,
)
from tests.support.pseudo_labels import guesses, names, probabilities, teacher


@given(values=probabilities)
def test_temperature_one_changes_nothing(values: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(apply_temperature(values, 1.0), values, atol=1e-6)


@given(values=probabilities, temperature=st.floats(0.1, 10))
def test_another_temperature_keeps_the_order(values: NDArray[np.float32], temperature: float) -> None:
    scaled = apply_temperature(values, temperature)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(scaled[np.arange(len(values)), values.argmax(1)], scaled.max(1), atol=1e-6)
    if temperature >= 1:  # below, small probabilities are lost
        np.testing.assert_allclose(apply_temperature(scaled, 1 / temperature), values, atol=1e-4)
    change = scaled.max(1) - values.max(1)
    assert ((change <= 1e-6) if temperature >= 1 else (change >= -1e-6)).all()


def test_a_certain_teacher_stays_finite() -> None:
    certain = np.eye(4, dtype=np.float32)
    for temperature in (0.05, 1.0, 20.0):
        scaled = apply_temperature(certain, temperature)
        assert np.isfinite(scaled).all()
        np.testing.assert_array_equal(scaled.argmax(1), np.arange(4))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5, 4.0])
def test_a_known_over_confidence_is_found(scale: float) -> None:
    values, truth = teacher(20_000, scale)
    assert fit_temperature(values, truth) == pytest.approx(scale, rel=0.06)
    assert match_temperature(values, float((values.argmax(1) == truth).mean())) == pytest.approx(scale, rel=0.06)


def test_calibrated_confidence_is_accuracy() -> None:
    values, truth = teacher(20_000, 1.0)
    overconfident = apply_temperature(values, 0.3)
    calibrated = apply_temperature(overconfident, fit_temperature(overconfident, truth))
    accuracy = (values.argmax(1) == truth).mean()
    assert overconfident.max(1).mean() > accuracy + 0.05
    assert calibrated.max(1).mean() == pytest.approx(accuracy, abs=0.01)


@pytest.mark.parametrize("right", [True, False])
def test_temperature_of_a_teacher_that_is_always_right_or_always_wrong(right: bool) -> None:
    values = np.tile(np.array([0.7, 0.1, 0.1, 0.1], np.float32), (5, 1))
    found = fit_temperature(values, np.full(5, 0 if right else 1))
    assert 0.04 < found < (0.2 if right else 21)
    assert found > (0 if right else 15)
    assert match_temperature(values, 1.0 if right else 0.2) == BOUNDS[0 if right else 1]


# Sources of the temperature ------------------------------------------------------------------------------------------


def test_calibration_on_val() -> None:
    values, truth = teacher(3000, 3.0)
    found = calibrated_on_val(values, truth, names(3000, 100))
    assert found.temperature == pytest.approx(3.0, rel=0.15)
    assert (found.calibrated_on, found.clips, found.groups) == ("val", 3000, 100)
    assert found.before is not None
    assert found.after is not None
    assert found.after["log_loss"] < found.before["log_loss"]
    assert found.after["ece"] < 0.03 < found.before["ece"]
    assert sum(found.after["reliability"]["count"]) == 3000
    assert found.summary()["before"]["ece"] == found.before["ece"]


@pytest.mark.parametrize(
    ("clips", "groups", "says"),
    [(0, 1, "no labelled clip"), (100, MIN_GROUPS - 1, "19 groups, fewer than 20"), (100, MIN_GROUPS, None)],
)
def test_val_needs_groups(clips: int, groups: int, says: str | None) -> None:
    problem = val_problem(np.arange(clips) // groups % 4, names(clips, groups), 4)
    assert (problem is None) if says is None else says in str(problem)


def test_val_needs_groups_of_every_class() -> None:
    truth = np.where(np.arange(100) == 0, 1, 0)
    assert val_problem(truth, names(100, 50), 2) == "split val has fewer than 2 groups of 1 of 2 classes"


def embedded(truth: NDArray[np.int64], clear: float, seed: int = 5) -> NDArray[np.float64]:
    """Embeddings (n, 8) whose classes are further apart the larger `clear`."""
    return np.random.default_rng(seed).normal(size=(len(truth), 8)) + clear * np.eye(8)[truth]


def test_the_accuracy_of_a_probe_replaces_the_teacher_s() -> None:
    values, hidden = teacher(4000, 3.0)
    truth = np.arange(600) % 4
    # a probe as accurate as the teacher gives the teacher's true temperature
    found = calibrated_by_probe(values, embedded(truth, 1.5), truth, names(600, 60), "no val")
    accuracy = float((values.argmax(1) == hidden).mean())
    assert found.accuracy == pytest.approx(accuracy, abs=0.04)
    assert found.temperature == pytest.approx(3.0, rel=0.25)
    assert (found.calibrated_on, found.clips, found.groups) == ("cross-fitted", 600, 60)
    assert found.after is not None
    assert found.after["mean_confidence"] == pytest.approx(found.accuracy, abs=1e-3)
    # a worse one lowers the teacher's confidence
    worse = calibrated_by_probe(values, embedded(truth, 0.8), truth, names(600, 60), "no val")
    assert worse.temperature > found.temperature


def test_a_probe_is_not_trained_on_the_group_that_it_predicts() -> None:
    truth = np.arange(200) % 4
    groups = np.array([f"g{number % 4}-{number // 20}" for number in range(200)], np.str_)
    # embeddings that identify the group and nothing else: a probe trained on clips of the group would be right
    codes = np.unique(groups, return_inverse=True)[1]
    x = np.random.default_rng(0).normal(size=(codes.max() + 1, 32))[codes]
    found = calibrated_by_probe(guesses(500), x, truth, groups, "no val")
    assert found.accuracy is not None
    assert found.accuracy < 0.5


@pytest.mark.parametrize("several", [True, False])
def test_too_few_groups_leave_the_teacher_uncalibrated(several: bool) -> None:
    truth = np.array([0, 0, 0, 1, 1] if several else [0] * 5)
    groups = np.array(["a", "b", "c", "d", "d"], np.str_)
    problem = cross_fit_problem(truth, groups)
    assert problem is not None
    assert ("a class has 1 group" if several else "are of one class") in problem
    if several:
        found = calibrated_by_probe(guesses(9), embedded(truth, 1), truth, groups, "split val has no labelled clip")
        assert (found.temperature, found.calibrated_on, found.before) == (1.0, "nothing", None)
        assert "val has no labelled clip, and a class has 1 group" in found.reason
