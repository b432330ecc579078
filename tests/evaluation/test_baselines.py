"""The SVM baselines: statistics worked by hand, random EQ, band-mean subtraction and self-training."""

import numpy as np
import pytest

from raymae.config import AudioConfig
from raymae.evaluation.baselines import (
    DEVIATION,
    LEVELS,
    MEAN,
    SVMS,
    fit_svm,
    random_eq,
    statistics,
    subtract_band_mean,
    surer_half,
)

AUDIO = AudioConfig(norm_mean=-4.0, norm_scale=2.0)
NAMES = ["bus", "park", "tram"]


def make_clips(rng: np.random.Generator, count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Statistics (n, 5, 16) of clips whose class raises all statistics of four bands, and their classes (n,)."""
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


def test_random_eq_shifts_only_the_levels_and_band_mean_subtraction_removes_it() -> None:
    x, _ = make_clips(np.random.default_rng(0), 20)
    with_eq = random_eq(x, np.random.default_rng(1))
    np.testing.assert_array_equal(with_eq[:, [DEVIATION, 4]], x[:, [DEVIATION, 4]])
    shift = (with_eq - x)[:, LEVELS]
    assert 1.5 < shift.std() < 4
    np.testing.assert_allclose(shift[:, 0], shift[:, 1], atol=1e-5)
    np.testing.assert_allclose(subtract_band_mean(with_eq), subtract_band_mean(x), atol=1e-5)
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


def test_the_robust_svm_generalises_to_another_device() -> None:
    rng = np.random.default_rng(0)
    train, (x, labels) = make_clips(rng, 60), make_clips(rng, 90)
    elsewhere = random_eq(x, rng)
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
def test_learns_multi_label_clips(kind: str) -> None:
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


def test_the_more_confident_half_of_every_predicted_class_is_kept() -> None:
    values = np.array([[3.0, 1, 0], [5, 1, 0], [2, 1, 0], [0, 1, 0.5], [9, 9, 9.1]])
    guess, kept = surer_half(values)
    assert guess.tolist() == [0, 0, 0, 1, 2]
    assert sorted(kept.tolist()) == [1, 3, 4]  # one of three, and the only ones of the others


def test_self_training_uses_unlabelled_clips_and_without_them_is_the_robust_svm() -> None:
    rng = np.random.default_rng(0)
    train, (x, labels), (unlabelled, _) = make_clips(rng, 6), make_clips(rng, 60), make_clips(rng, 90)
    robust, without, self_trained = (
        fit_svm(kind, *train, NAMES, 0, more).decision_values(x)
        for kind, more in (("svm_robust", None), ("svm_self_trained", None), ("svm_self_trained", unlabelled))
    )
    np.testing.assert_array_equal(robust, without)
    assert np.abs(self_trained - robust).max() > 0.1
    assert np.mean(self_trained.argmax(1) == labels) >= np.mean(robust.argmax(1) == labels)


def test_self_training_is_for_single_label_clips() -> None:
    x, labels = make_clips(np.random.default_rng(0), 12)
    with pytest.raises(ValueError, match="is for single-label clips"):
        fit_svm("svm_self_trained", x, np.eye(3, dtype=int)[labels], NAMES, 0, x)
