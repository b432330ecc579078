"""Probes: simple classifiers of frozen embeddings, to compare encoders.

Works on numpy arrays, embeddings (n, E), class numbers (n,) and groups (n,), with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.labels import Labels
from raymae.datasets.rows import group_ids
from raymae.evaluation.metrics import macro_accuracy

Embeddings = NDArray[np.floating]

ClassNumbers = NDArray[np.integer]

ProbeKind = Literal["linear", "knn"]

FOLDS = 5

NEIGHBOURS = 10

MANY = 10**7
"""Numbers in the embeddings from which on several threads fit a probe faster than one."""

STRENGTH = 0.01
"""scikit-learn's C of the linear probe. On 70 labels of ten classes whose clips pre-training used without labels, C
from 0.003 to 0.1 agrees within a point; ridge regression is three points and a support vector machine five below."""


def make_probe(kind: ProbeKind, n_clips: int) -> Any:
    """An unfitted classifier of standardised embeddings.

    linear: logistic regression. knn: the 10 nearest neighbours by cosine similarity.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import, which few workers need
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    return make_pipeline(StandardScaler(), KNeighborsClassifier(min(NEIGHBOURS, n_clips), metric="cosine"))


def fit_probe(
    kind: ProbeKind,
    x: Embeddings,
    y: ClassNumbers,
    weights: NDArray[np.floating] | None = None,
    copies: Embeddings | None = None,
) -> Any:
    """A probe fitted to embeddings, which may have weights (n,), and standardised by those of some `copies` (m, E).

    On one thread while they are few: the threads of BLAS would wait for each other in every one of thousands of small
    steps, which on two cores takes seven times as long.
    """
    from threadpoolctl import threadpool_limits

    probe = make_probe(kind, len(x))
    if copies is not None:
        from sklearn.frozen import FrozenEstimator

        name, scaler = probe.steps[0]
        probe.steps[0] = name, FrozenEstimator(scaler.fit(copies))
    named = {} if weights is None else {f"{step}__sample_weight": weights for step, _ in probe.steps}
    with threadpool_limits(1 if x.size < MANY else None, user_api="blas"):
        return probe.fit(x, y, **named)


def score(
    kind: ProbeKind, x_train: Embeddings, y_train: ClassNumbers, x_test: Embeddings, y_test: ClassNumbers
) -> float:
    """Macro accuracy, on the test clips, of a probe fitted to the training clips."""
    return macro_accuracy(y_test, fit_probe(kind, x_train, y_train).predict(x_test))


def cross_validated(kind: ProbeKind, x: Embeddings, y: ClassNumbers, groups: NDArray[Any]) -> float | None:
    """Macro accuracy over all clips, each predicted by a probe that was trained on no clip of its group.

    None where a class has fewer than two groups, so that some probe would be trained without it.
    """
    predicted = cross_fitted(kind, x, y, groups)
    return None if predicted is None else macro_accuracy(y, predicted)


def cross_fitted(kind: ProbeKind, x: Embeddings, y: ClassNumbers, groups: NDArray[Any]) -> ClassNumbers | None:
    """Predictions (n,) of probes that were trained on no clip of the predicted clip's group; None as above."""
    from sklearn.model_selection import StratifiedGroupKFold

    if fewest_groups(y, groups) < 2:
        return None
    predicted = np.empty(len(y), y.dtype)
    folds = min(FOLDS, fewest_groups(y, groups))
    for train, test in StratifiedGroupKFold(folds).split(x, y, groups):
        predicted[test] = fit_probe(kind, x[train], y[train]).predict(x[test])
    return predicted


def fewest_groups(y: ClassNumbers, groups: NDArray[Any]) -> int:
    """Number of groups of the class that has the fewest."""
    return min(len(set(groups[y == label].tolist())) for label in np.unique(y))


def effective_rank(x: Embeddings) -> float:
    """Effective rank of embeddings: exp of the entropy of their normalised singular values (Roy & Vetterli 2007).

    The mean is subtracted first. It is 1 for an encoder that has collapsed to a line, and at most min(n - 1, E).
    """
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if not singular[0] > 0:
        return 1.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


TARGETS = {"device": "device", "city": "city", "scene": "scene_label"}
"""Targets of the probes, and their columns in the clip table."""


def read_out(
    embeddings: Mapping[str, NDArray[np.floating]], clips: pa.Table, labels: Labels, layer: int
) -> dict[str, Any]:
    """Macro accuracy of a linear probe, cross-validated by group, on each kind of embeddings (n, E) of some clips.

    Keys: layer; targets: device, city, scene → names, clips, groups, chance (of macro accuracy: 1 / number of names);
    scores: embeddings → target → macro accuracy. Names with fewer groups than there are folds are left out, and so are
    targets with fewer than two names left, and the scene of multi-label clips.
    """
    groups = np.array(group_ids(clips).to_pylist())
    found: dict[str, Any] = {"layer": layer, "targets": {}, "scores": {title: {} for title in embeddings}}
    for target, column in TARGETS.items():
        if target == "scene" and labels == "multi":
            continue
        values = np.array(clips[column].to_pylist(), dtype=object)
        known = sorted({value for value in values if value is not None})
        names = [name for name in known if len(set(groups[values == name])) >= FOLDS]
        if len(names) < 2:
            continue
        rows = np.flatnonzero(np.isin(values, names))
        y = np.array([names.index(value) for value in values[rows]])
        found["targets"][target] = {
            "names": names,
            "clips": len(rows),
            "groups": len(set(groups[rows].tolist())),
            "chance": 1 / len(names),
        }
        for title, x in embeddings.items():
            found["scores"][title][target] = cross_validated("linear", x[rows], y, groups[rows])
    return found
