"""Probabilities, groups and settings for tests of pseudo-labels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from raymae.config import PseudoLabelConfig

CLASSES = 4


def drawn(honest: NDArray[np.float32], seed: int = 1) -> NDArray[np.int64]:
    """Classes (n,) sampled from probabilities (n, C)."""
    rng = np.random.default_rng(seed)
    return np.asarray((honest.cumsum(1) < rng.random((len(honest), 1)) * honest.sum(1, keepdims=True)).sum(1))


def guesses(count: int, seed: int = 0, spread: float = 2.0) -> NDArray[np.float32]:
    """Probabilities (count, 4) of random logits."""
    logits = spread * np.random.default_rng(seed).normal(size=(count, CLASSES))
    return np.asarray(softmax(logits, axis=1), np.float32)


def in_groups(count: int, groups: int = 7) -> NDArray[np.str_]:
    return np.array([f"g{number % groups}" for number in range(count)], np.str_)


def threshold(value: float) -> PseudoLabelConfig:
    return PseudoLabelConfig(confidence_threshold=value)


def coverage(value: float) -> PseudoLabelConfig:
    return PseudoLabelConfig(confidence_threshold=None, coverage=value)


def flexmatch(value: float) -> PseudoLabelConfig:
    return PseudoLabelConfig(rule="flexmatch", confidence_threshold=value)


FREEMATCH = PseudoLabelConfig(rule="freematch", confidence_threshold=None)

probabilities = st.builds(guesses, st.integers(0, 60), st.integers(0, 1000), st.floats(0.1, 8))

shares = st.floats(0.01, 0.99)


def teacher(count: int, scale: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities (n, 4) of an over-confident teacher, whose logits are `scale` times too large, and classes (n,)."""
    logits = 2 * np.random.default_rng(seed).normal(size=(count, 4))
    truth = drawn(np.asarray(softmax(logits, axis=1), np.float32), seed + 1)
    return np.asarray(softmax(scale * logits, axis=1), np.float32), truth


def names(count: int, groups: int) -> NDArray[np.str_]:
    return np.array([f"g{number % groups}" for number in range(count)], np.str_)
