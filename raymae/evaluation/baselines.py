"""Baselines without a network: support vector machines on log-mel statistics.

They train in seconds on a few hundred clips and are hard to beat with few labels. A network that doesn't beat them has
not earned its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from raymae.config import AudioConfig
from raymae.datasets.labels import Labels

SvmKind = Literal["svm", "svm_band_mean", "svm_eq", "svm_robust", "svm_self_trained"]
SVMS: tuple[SvmKind, ...] = get_args(SvmKind)
"""In the order of the report."""

Statistics = NDArray[np.float32]
Prepare = Callable[[Statistics], Statistics]

MEAN, DEVIATION, LOW, HIGH, CHANGE = range(5)
LEVELS = [MEAN, LOW, HIGH]
"""The statistics that a frequency response shifts."""

COPIES, KNOTS, NATS = 10, 8, 3.0
"""Coloured copies of each training clip; knots of a response and its standard deviation there, nats of power."""


def statistics(log_mel: NDArray[np.float32], valid_frames: int, audio: AudioConfig) -> Statistics:
    """Statistics (5, F) of each band over the valid frames of a normalised log-mel (T, F), in nats.

    Mean, standard deviation, 10th and 90th percentile, and mean absolute change from frame to frame.
    """
    nats = log_mel[:valid_frames] * audio.norm_scale + audio.norm_mean
    low, high = np.percentile(nats, [10, 90], axis=0)
    change = np.abs(np.diff(nats, axis=0)).sum(axis=0) / max(1, valid_frames - 1)
    return np.stack([nats.mean(axis=0), nats.std(axis=0), low, high, change]).astype(np.float32)


def keep(x: Statistics) -> Statistics:
    """The statistics as they are."""
    return x


def subtract_band_mean(x: Statistics) -> Statistics:
    """Take each clip's mean level of every band from its levels: what a device adds is gone."""
    x = x.copy()
    x[:, LEVELS] -= x[:, [MEAN]]
    return x


def colour(x: Statistics, rng: np.random.Generator) -> Statistics:
    """Statistics (n, 5, F) of the same clips through devices with random smooth frequency responses."""
    bands = np.linspace(0, KNOTS - 1, x.shape[2])
    knots = rng.normal(scale=NATS, size=(len(x), KNOTS))
    responses = np.stack([np.interp(bands, np.arange(KNOTS), row) for row in knots])
    x = x.copy()
    x[:, LEVELS] += responses[:, None].astype(np.float32)
    return x


@dataclass(frozen=True)
class SvmBaseline:
    """One or several machines, each on its own view of the statistics."""

    class_names: Sequence[str]
    labels: Labels
    parts: Sequence[tuple[Prepare, Any]]

    def decision_values(self, x: Statistics) -> NDArray[np.float64]:
        """The sum of the parts' decision values (n, C); a class that was not in training never wins."""
        values = np.full((len(x), len(self.class_names)), -np.inf)
        _, first = self.parts[0]
        values[:, first.classes_] = sum(_one_per_class(part.decision_function(_flat(f(x)))) for f, part in self.parts)
        return values

    def probabilities(self, x: Statistics) -> NDArray[np.float64]:
        """Decision values (n, C) squashed by softmax, or each by itself where clips may have several classes: right for
        the winner and the order, not a confidence."""
        values = self.decision_values(x)
        return softmax(values, axis=1) if self.labels == "single" else expit(values)


def fit_svm(
    kind: SvmKind,
    x: Statistics,
    targets: NDArray[np.integer],
    class_names: Sequence[str],
    seed: int,
    unlabelled: Statistics | None = None,
) -> SvmBaseline:
    """Fit a baseline to statistics (n, 5, F) and class numbers (n,), or to multi-hot targets (n, C): one class against the
    rest each.

    svm: one machine on the statistics. svm_band_mean: on centred ones. svm_eq: on the statistics with coloured
    copies. svm_robust: the last two together. svm_self_trained: svm_robust labels the surer half of each predicted
    class of `unlabelled` (m, 5, F), by the margin between its two best classes, and is fitted again with them; without
    unlabelled clips the same as svm_robust. Raises ValueError for fewer than two classes (scikit-learn's), and where
    svm_self_trained is given multi-hot targets.
    """
    labels: Labels = "single" if targets.ndim == 1 else "multi"
    if kind == "svm_self_trained":
        if labels == "multi":
            raise ValueError("svm_self_trained labels clips with one class each; these have several")
        if unlabelled is not None and len(unlabelled):
            teacher = fit_svm("svm_robust", x, targets, class_names, seed)
            guess, kept = surer_half(teacher.decision_values(unlabelled))
            x, targets = np.concatenate([x, unlabelled[kept]]), np.concatenate([targets, guess[kept]])
    parts: list[tuple[Prepare, Any]] = []
    if kind == "svm":
        parts.append((keep, _machine(x, targets)))
    if kind not in ("svm", "svm_band_mean"):
        rng = np.random.default_rng(seed)
        coloured = np.concatenate([x, *(colour(x, rng) for _ in range(COPIES))])
        parts.append((keep, _machine(coloured, np.concatenate([targets] * (1 + COPIES)))))
    if kind not in ("svm", "svm_eq"):
        parts.append((subtract_band_mean, _machine(subtract_band_mean(x), targets)))
    return SvmBaseline(class_names, labels, parts)


def surer_half(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of decision values (m, C): the guesses (m,), and the clips that have the larger margins of those guessed alike,
    half of them and at least one of each class that is guessed."""
    guess, order = values.argmax(1), np.sort(values, axis=1)
    margin = order[:, -1] - order[:, -2]
    kept = []
    for label in np.unique(guess):
        mine = np.flatnonzero(guess == label)
        kept.append(mine[np.argsort(-margin[mine], kind="stable")][: max(1, len(mine) // 2)])
    return guess, np.concatenate(kept)


def _machine(x: Statistics, targets: NDArray[np.integer]) -> Any:
    machine = SVC(C=10.0) if targets.ndim == 1 else OneVsRestClassifier(SVC(C=10.0))
    return make_pipeline(StandardScaler(), machine).fit(_flat(x), targets)


def _flat(x: Statistics) -> Statistics:
    return x.reshape(len(x), -1)


def _one_per_class(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decision values (n, C) also for two classes, for which scikit-learn gives those of the second, (n,)."""
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values
