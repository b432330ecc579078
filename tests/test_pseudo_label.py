"""Pseudo-labels: calibration finds a known temperature, and exactly the surest guesses are accepted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from raymae.config import PseudoLabelConfig
from raymae.pseudo_label import accept, fit_temperature, pseudo_label_table, soften, summary

NAMES = ["airport", "bus", "park", "tram"]
COLUMNS = ["clip_id", "pseudo_label", "raw_confidence", "confidence", "accepted", "reason", "teacher"]


def threshold(value: float) -> PseudoLabelConfig:
    return PseudoLabelConfig(confidence_threshold=value, coverage=None)


def coverage(value: float) -> PseudoLabelConfig:
    return PseudoLabelConfig(confidence_threshold=None, coverage=value)


def guesses(count: int, seed: int = 0, spread: float = 2.0) -> NDArray[np.float32]:
    """Probabilities (count, 4) of random logits."""
    logits = spread * np.random.default_rng(seed).normal(size=(count, len(NAMES)))
    return np.asarray(softmax(logits, axis=1), np.float32)


probabilities = st.builds(guesses, st.integers(0, 60), st.integers(0, 1000), st.floats(0.1, 8))
shares = st.floats(0.01, 0.99)


# Calibration ---------------------------------------------------------------------------------------------------------


@given(values=probabilities)
def test_temperature_one_changes_nothing(values: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(soften(values, 1.0), values, atol=1e-6)


@given(values=probabilities, temperature=st.floats(0.1, 10))
def test_another_temperature_keeps_the_order(values: NDArray[np.float32], temperature: float) -> None:
    softened = soften(values, temperature)
    assert softened.dtype == np.float32
    np.testing.assert_allclose(softened.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(softened[np.arange(len(values)), values.argmax(1)], softened.max(1), atol=1e-6)
    if temperature >= 1:  # below, small probabilities are lost
        np.testing.assert_allclose(soften(softened, 1 / temperature), values, atol=1e-4)
    change = softened.max(1) - values.max(1)
    assert ((change <= 1e-6) if temperature >= 1 else (change >= -1e-6)).all()


def test_a_certain_teacher_stays_finite() -> None:
    certain = np.eye(4, dtype=np.float32)
    for temperature in (0.05, 1.0, 20.0):
        softened = soften(certain, temperature)
        assert np.isfinite(softened).all()
        np.testing.assert_array_equal(softened.argmax(1), np.arange(4))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    rng = np.random.default_rng(1)
    values = guesses(20_000, spread=3.0)
    honest = soften(values, temperature)
    truth = (honest.cumsum(1) < rng.random((len(honest), 1)) * honest.sum(1, keepdims=True)).sum(1)
    assert fit_temperature(values, truth) == pytest.approx(temperature, rel=0.06)


def test_calibrated_confidence_is_accuracy() -> None:
    rng = np.random.default_rng(2)
    values = guesses(20_000)
    truth = (values.cumsum(1) < rng.random((len(values), 1)) * values.sum(1, keepdims=True)).sum(1)
    boastful = soften(values, 0.3)
    calibrated = soften(boastful, fit_temperature(boastful, truth))
    accuracy = (values.argmax(1) == truth).mean()
    assert boastful.max(1).mean() > accuracy + 0.05
    assert calibrated.max(1).mean() == pytest.approx(accuracy, abs=0.01)


@pytest.mark.parametrize("right", [True, False])
def test_a_temperature_is_found_for_the_extremes(right: bool) -> None:
    values = np.tile(np.array([0.7, 0.1, 0.1, 0.1], np.float32), (5, 1))
    truth = np.full(5, 0 if right else 1)
    found = fit_temperature(values, truth)
    assert 0.04 < found < (0.2 if right else 21)
    assert found > (0 if right else 15)


# Acceptance ----------------------------------------------------------------------------------------------------------


@given(values=probabilities, least=shares)
def test_a_threshold_accepts_what_reaches_it(values: NDArray[np.float32], least: float) -> None:
    confidence = values.max(1)
    accepted, used = accept(values.argmax(1), confidence, threshold(least))
    assert used == least
    assert accepted.dtype == bool
    assert accepted.tolist() == [bool(value >= np.float32(least)) for value in confidence]


@given(values=probabilities, share=shares)
def test_coverage_accepts_a_share_of_every_predicted_class(values: NDArray[np.float32], share: float) -> None:
    guess, confidence = values.argmax(1), values.max(1)
    accepted, used = accept(guess, confidence, coverage(share))
    assert used is None
    assert len(accepted) == len(guess)
    for label in np.unique(guess):
        mine = guess == label
        count = int((accepted & mine).sum())
        assert 1 <= count <= max(1.0, share * mine.sum() + 0.5)
        assert count >= share * mine.sum() - 0.5
        refused = confidence[mine & ~accepted]
        assert not len(refused) or confidence[mine & accepted].min() >= refused.max()


@given(values=probabilities, first=shares, second=shares)
def test_more_coverage_or_a_lower_threshold_only_adds(values: NDArray[np.float32], first: float, second: float) -> None:
    low, high = sorted([first, second])
    guess, confidence = values.argmax(1), values.max(1)
    assert not (accept(guess, confidence, coverage(low))[0] & ~accept(guess, confidence, coverage(high))[0]).any()
    assert not (accept(guess, confidence, threshold(high))[0] & ~accept(guess, confidence, threshold(low))[0]).any()


@given(values=probabilities, share=shares, seed=st.integers(0, 99))
def test_the_order_of_the_clips_does_not_matter(values: NDArray[np.float32], share: float, seed: int) -> None:
    values = values[np.unique(values.max(1), return_index=True)[1]]  # ties are broken by the order
    shuffled = np.random.default_rng(seed).permutation(len(values))
    accepted, _ = accept(values.argmax(1), values.max(1), coverage(share))
    again, _ = accept(values[shuffled].argmax(1), values[shuffled].max(1), coverage(share))
    np.testing.assert_array_equal(again, accepted[shuffled])


# The table -----------------------------------------------------------------------------------------------------------


def table(values: NDArray[np.float32], config: PseudoLabelConfig, temperature: float = 1.0) -> pa.Table:
    ids = [f"clip{number}" for number in range(len(values))]
    return pseudo_label_table(ids, values, temperature, NAMES, config, "artifacts/finetune/abc")


@pytest.mark.parametrize("config", [threshold(0.6), coverage(0.25)])
def test_every_unlabelled_clip_has_a_row_with_its_provenance(config: PseudoLabelConfig) -> None:
    values = guesses(200)
    found = table(values, config, temperature=2.0)
    assert found.column_names == COLUMNS
    assert found.schema.field("accepted").type == pa.bool_()
    assert not any(found[name].null_count for name in COLUMNS)
    rows = found.to_pydict()
    assert rows["clip_id"] == [f"clip{number}" for number in range(200)]
    assert rows["pseudo_label"] == [NAMES[number] for number in values.argmax(1)]
    assert rows["raw_confidence"] == pytest.approx(values.max(1).tolist())
    assert rows["confidence"] == pytest.approx(soften(values, 2.0).max(1).tolist())
    assert set(rows["teacher"]) == {"artifacts/finetune/abc"}
    expected, _ = accept(values.argmax(1), soften(values, 2.0).max(1), config)
    assert rows["accepted"] == expected.tolist()
    assert 0 < sum(rows["accepted"]) < 200
    reason = "confidence below 0.6" if config.coverage is None else "not among the surest 0.25 of its class"
    assert rows["reason"] == ["" if accepted else reason for accepted in rows["accepted"]]


@pytest.mark.parametrize("config", [threshold(0.6), coverage(0.25)])
def test_no_unlabelled_clip_is_an_empty_table(config: PseudoLabelConfig) -> None:
    found = table(np.zeros((0, len(NAMES)), np.float32), config)
    assert len(found) == 0
    assert found.schema == table(guesses(3), config).schema
    counts = summary(found, NAMES, 1.0, 7)
    assert counts["unlabelled"] == counts["accepted"] == counts["coverage"] == 0
    assert counts["calibrated_on_clips"] == 7


def test_nothing_accepted_is_a_result() -> None:
    found = table(guesses(50, spread=0.5), threshold(0.99))
    assert len(found) == 50
    assert not any(found["accepted"].to_pylist())
    assert set(found["reason"].to_pylist()) == {"confidence below 0.99"}
    counts = summary(found, NAMES, 1.0, 0)
    assert (counts["unlabelled"], counts["accepted"], counts["coverage"]) == (50, 0, 0)
    assert counts["accepted_by_class"] == dict.fromkeys(NAMES, 0)


@given(values=probabilities, share=shares)
def test_the_summary_counts_the_table(values: NDArray[np.float32], share: float) -> None:
    found = table(values, coverage(share))
    counts = summary(found, NAMES, 1.5, 12)
    accepted = [row["pseudo_label"] for row in found.to_pylist() if row["accepted"]]
    assert counts["accepted"] == len(accepted) == sum(counts["accepted_by_class"].values())
    assert counts["accepted_by_class"] == {name: accepted.count(name) for name in NAMES}
    assert counts["coverage"] == pytest.approx(len(accepted) / max(1, len(values)))
    assert counts["temperature"] == 1.5
