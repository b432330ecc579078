"""The SVM baselines: statistics by hand, and what makes one of them robust."""

import numpy as np
import pytest

from raymae.config import AudioConfig
from raymae.evaluation.baselines import (
    DEVIATION,
    LEVELS,
    MEAN,
    SVMS,
    colour,
    fit_svm,
    statistics,
    subtract_band_mean,
    surer_half,
)

AUDIO = AudioConfig(norm_mean=-4.0, norm_scale=2.0)
NAMES = ["bus", "park", "tram"]


def make_clips(rng: np.random.Generator, count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of clips whose class is a bump in the spread of some bands; 16 bands."""
    labels = np.arange(count) % classes
    x = rng.normal(scale=0.3, size=(count, 5, 16))
    x[np.arange(count)[:, None], :, labels[:, None] * 4 + np.arange(4)] += 1.0
    return x.astype(np.float32), labels


def test_statistics_by_hand() -> None:
    nats = np.array([[0, 10], [1, 10], [2, 10], [3, 10], [4, 10]], np.float32)
    log_mel = np.concatenate([(nats + 4) / 2, np.full((3, 2), -99)])
    found = statistics(log_mel, 5, AUDIO)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [2, np.sqrt(2), 0.4, 3.6, 1], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], [10, 0, 10, 10, 0], atol=1e-5)


def test_a_single_frame_does_not_change() -> None:
    assert statistics(np.ones((4, 3), np.float32), 1, AUDIO)[4].tolist() == [0, 0, 0]


def test_a_response_shifts_the_levels_alone_and_centring_takes_it_away() -> None:
    x, _ = make_clips(np.random.default_rng(0), 20)
    coloured = colour(x, np.random.default_rng(1))
    np.testing.assert_array_equal(coloured[:, [DEVIATION, 4]], x[:, [DEVIATION, 4]])
    shift = (coloured - x)[:, LEVELS]
    assert 1.5 < shift.std() < 4
    np.testing.assert_allclose(shift[:, 0], shift[:, 1], atol=1e-5)
    np.testing.assert_allclose(subtract_band_mean(coloured), subtract_band_mean(x), atol=1e-5)
    assert not subtract_band_mean(x)[:, MEAN].any()


@pytest.mark.parametrize("kind", SVMS)
@pytest.mark.parametrize("classes", [2, 3])
def test_learns(kind: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    model = fit_svm(kind, *make_clips(rng, 30, classes), NAMES, 0)
    x, labels = make_clips(rng, 60, classes)
    probabilities = model.probabilities(x)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.mean(probabilities.argmax(1) == labels) > 0.95
    if classes == 2:
        assert not probabilities[:, 2].any()


def test_the_robust_one_stands_another_device() -> None:
    rng = np.random.default_rng(0)
    train, (x, labels) = make_clips(rng, 60), make_clips(rng, 90)
    elsewhere = colour(x, rng)
    scores = {
        kind: np.mean(fit_svm(kind, *train, NAMES, 0).probabilities(elsewhere).argmax(1) == labels)
        for kind in ("svm", "svm_robust")
    }
    assert scores["svm_robust"] > scores["svm"] + 0.1


def test_a_seed_decides() -> None:
    rng = np.random.default_rng(0)
    train, (x, _) = make_clips(rng, 30), make_clips(rng, 10)
    one, again, other = (fit_svm("svm_robust", *train, NAMES, seed).probabilities(x) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["svm", "svm_robust"])
def test_learns_several_classes_at_once(kind: str) -> None:
    rng = np.random.default_rng(0)

    def make(count: int) -> tuple[np.ndarray, np.ndarray]:
        targets = (rng.random((count, 3)) < 0.5).astype(np.int64)
        x = rng.normal(scale=0.3, size=(count, 5, 16)).astype(np.float32)
        x[:, :, :12] += np.repeat(targets, 4, axis=1)[:, None]
        return x, targets

    model = fit_svm(kind, *make(60), NAMES, 0)
    x, targets = make(60)
    probabilities = model.probabilities(x)
    assert probabilities.shape == (60, 3)
    assert np.mean((probabilities > 0.5) == targets) > 0.95
    assert probabilities.sum(axis=1).max() > 1.5


def test_the_surer_half_of_every_guess_is_kept() -> None:
    values = np.array([[3.0, 1, 0], [5, 1, 0], [2, 1, 0], [0, 1, 0.5], [9, 9, 9.1]])
    guess, kept = surer_half(values)
    assert guess.tolist() == [0, 0, 0, 1, 2]
    assert sorted(kept.tolist()) == [1, 3, 4]  # one of three, and the only ones of the others


def test_self_training_learns_from_unlabelled_clips_and_without_them_is_the_robust_one() -> None:
    rng = np.random.default_rng(0)
    train, (x, labels), (unlabelled, _) = make_clips(rng, 6), make_clips(rng, 60), make_clips(rng, 90)
    robust, alone, taught = (
        fit_svm(kind, *train, NAMES, 0, more).decision_values(x)
        for kind, more in (("svm_robust", None), ("svm_self_trained", None), ("svm_self_trained", unlabelled))
    )
    np.testing.assert_array_equal(robust, alone)
    assert np.abs(taught - robust).max() > 0.1
    assert np.mean(taught.argmax(1) == labels) >= np.mean(robust.argmax(1) == labels)


def test_self_training_is_for_one_class_a_clip() -> None:
    x, labels = make_clips(np.random.default_rng(0), 12)
    with pytest.raises(ValueError, match="one class each"):
        fit_svm("svm_self_trained", x, np.eye(3, dtype=int)[labels], NAMES, 0, x)
