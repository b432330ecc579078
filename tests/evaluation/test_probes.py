"""Probes on embeddings with known results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.evaluation.probes import cross_validated, effective_rank, fewest_groups, score

KINDS = pytest.mark.parametrize("kind", ["linear", "knn"])


def clusters(n: int, classes: int, seed: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, 16))
    return (centres[y] + spread * rng.normal(size=(n, 16))).astype(np.float32), y


@KINDS
def test_clusters_are_found(kind) -> None:
    assert score(kind, *clusters(60, 3, 0), *clusters(60, 3, 1)) > 0.95


@KINDS
def test_noise_is_left_to_chance(kind) -> None:
    (x, y), (x_test, y_test) = clusters(200, 4, 0), clusters(400, 4, 1)
    x, x_test = np.random.default_rng(2).normal(size=x.shape), np.random.default_rng(3).normal(size=x_test.shape)
    assert score(kind, x, y, x_test, y_test) < 0.4


def test_no_clip_is_predicted_by_a_probe_trained_on_its_group() -> None:
    """Clips of a group are alike and independent of the class: only a leak between folds would predict them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 20)
    y = np.repeat(rng.permutation(100) % 2, 20)
    x = np.repeat(rng.normal(size=(100, 16)), 20, axis=0) + 0.01 * rng.normal(size=(2000, 16))
    assert cross_validated("knn", x, y, groups.astype(str)) < 0.65
    assert cross_validated("knn", x, y, np.arange(2000).astype(str)) > 0.95


def test_a_class_of_one_group_has_no_score() -> None:
    x, y = clusters(20, 2, 0)
    groups = np.where(y == 0, "one", np.arange(20).astype(str))
    assert fewest_groups(y, groups) == 1
    assert cross_validated("linear", x, y, groups) is None


@given(st.integers(1, 12), st.integers(0, 5))
def test_the_effective_rank_counts_equal_directions(rank: int, seed: int) -> None:
    """Orthonormal columns of mean 0, so that all singular values are equal: the rank is their number."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(64, rank))
    columns, _ = np.linalg.qr(raw - raw.mean(0))
    directions, _ = np.linalg.qr(rng.normal(size=(20, rank)))
    assert effective_rank(columns @ directions.T) == pytest.approx(rank, rel=1e-6)


def test_the_effective_rank_sees_a_collapse() -> None:
    x = np.random.default_rng(0).normal(size=(100, 1)) * np.ones((1, 30))
    assert effective_rank(x) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(np.ones((10, 3))) == 1.0
    assert effective_rank(np.random.default_rng(0).normal(size=(100, 30))) > 20
