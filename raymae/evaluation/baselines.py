"""Baselines without a network: support vector machines on log-mel statistics.

They train in seconds on a few hundred clips and are hard to beat with few labels. A network that doesn't beat them is
not worth its cost.
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
"""All kinds, in the order of the report."""

Statistics = NDArray[np.float32]
Prepare = Callable[[Statistics], Statistics]

MEAN, DEVIATION, LOW, HIGH, CHANGE = range(5)
LEVELS = [MEAN, LOW, HIGH]
"""The statistics that a frequency response shifts."""

COPIES, KNOTS, NATS = 10, 8, 3.0
"""Random-EQ copies of each training clip; knots of a response and its standard deviation there, nats of power."""


def statistics(log_mel: NDArray[np.float32], valid_frames: int, audio: AudioConfig) -> Statistics:
    """Statistics (5, F) of each band over the valid frames of a normalised log-mel (T, F), in nats.

    These are mean, standard deviation, 10th and 90th percentile, and mean absolute change from frame to frame.
    """
    nats = log_mel[:valid_frames] * audio.norm_scale + audio.norm_mean
    low, high = np.percentile(nats, [10, 90], axis=0)
    change = np.abs(np.diff(nats, axis=0)).sum(axis=0) / max(1, valid_frames - 1)
    return np.stack([nats.mean(axis=0), nats.std(axis=0), low, high, change]).astype(np.float32)


def keep(x: Statistics) -> Statistics:
    """The statistics as they are."""
    return x


def subtract_band_mean(x: Statistics) -> Statistics:
    """Subtract each clip's mean of every band from its levels, which removes a device's frequency response."""
    x = x.copy()
    x[:, LEVELS] -= x[:, [MEAN]]
    return x


def random_eq(x: Statistics, rng: np.random.Generator) -> Statistics:
    """Statistics (n, 5, F) of the same clips with random smooth frequency responses."""
    bands = np.linspace(0, KNOTS - 1, x.shape[2])
    knots = rng.normal(scale=NATS, size=(len(x), KNOTS))
    responses = np.stack([np.interp(bands, np.arange(KNOTS), row) for row in knots])
    x = x.copy()
    x[:, LEVELS] += responses[:, None].astype(np.float32)
    return x


@dataclass(frozen=True)
class SvmBaseline:
    """One or several support vector machines, each on a transform of the statistics."""

    class_names: Sequence[str]
    labels: Labels
    parts: Sequence[tuple[Prepare, Any]]
    """The transform and the fitted machine of each part."""

    def decision_values(self, x: Statistics) -> NDArray[np.float64]:
        """The sum of the parts' decision values (n, C); -inf for a class without a training clip."""
        values = np.full((len(x), len(self.class_names)), -np.inf)
        _, first = self.parts[0]
        values[:, first.classes_] = sum(_one_per_class(part.decision_function(_flat(f(x)))) for f, part in self.parts)
        return values

    def probabilities(self, x: Statistics) -> NDArray[np.float64]:
        """Softmax (multi-label: sigmoid) of the decision values (n, C): for ranking classes, not as confidence."""
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
    """Fit a baseline to statistics (n, 5, F) and class numbers (n,), or multi-hot targets (n, C) one class at a time.

    svm: one machine on the statistics. svm_band_mean: on statistics with the band mean subtracted. svm_eq: on the
    statistics and copies with random EQ. svm_robust: the last two together. svm_self_trained: svm_robust labels the
    more confident half of each predicted class of `unlabelled` (m, 5, F), by the margin between the two best classes,
    and is refitted with them; without unlabelled clips the same as svm_robust. Raises ValueError for fewer than two
    classes (from scikit-learn), and for svm_self_trained with multi-hot targets.
    """
    labels: Labels = "single" if targets.ndim == 1 else "multi"
    if kind == "svm_self_trained":
        if labels == "multi":
            raise ValueError("svm_self_trained is for single-label clips; these are multi-label")
        if unlabelled is not None and len(unlabelled):
            teacher = fit_svm("svm_robust", x, targets, class_names, seed)
            guess, kept = surer_half(teacher.decision_values(unlabelled))
            x, targets = np.concatenate([x, unlabelled[kept]]), np.concatenate([targets, guess[kept]])
    parts: list[tuple[Prepare, Any]] = []
    if kind == "svm":
        parts.append((keep, _machine(x, targets)))
    if kind not in ("svm", "svm_band_mean"):
        rng = np.random.default_rng(seed)
        with_copies = np.concatenate([x, *(random_eq(x, rng) for _ in range(COPIES))])
        parts.append((keep, _machine(with_copies, np.concatenate([targets] * (1 + COPIES)))))
    if kind not in ("svm", "svm_eq"):
        parts.append((subtract_band_mean, _machine(subtract_band_mean(x), targets)))
    return SvmBaseline(class_names, labels, parts)


def surer_half(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The predicted classes (m,) of decision values (m, C), and the clips in the more confident half of each class.

    Confidence is the margin between the two best classes; at least one clip of each predicted class is kept.
    """
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
    """Decision values (n, C) also of two classes, for which scikit-learn returns only the second's, (n,)."""
    return np.stack([-values, values], axis=1) if values.ndim == 1 else values
