"""Probes: how much of the classes a simple classifier finds in frozen embeddings. The field's way to compare encoders.

Arrays are numpy's: embeddings (n, E), labels (n,) class numbers, groups (n,). scikit-learn does the fitting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.datasets.labels import Labels
from raymae.evaluation.metrics import macro_accuracy

Embeddings = NDArray[np.floating]

ClassNumbers = NDArray[np.integer]

ProbeKind = Literal["linear", "knn"]

FOLDS = 5

NEIGHBOURS = 10

STRENGTH = 0.01
"""scikit-learn's C of the linear probe. On 70 labels of ten classes that pre-training knew without labels, C from 0.003
to 0.1 agrees within a point, ridge regression lies three points and a support vector machine five below."""


def make_probe(kind: ProbeKind, n_clips: int) -> Any:
    """An unfitted classifier of embeddings, which standardises each value first.

    linear: logistic regression. knn: the 10 nearest neighbours by cosine.
    """
    from sklearn.linear_model import LogisticRegression  # a second of loading, which few workers need to wait
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "linear":
        return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    return make_pipeline(StandardScaler(), KNeighborsClassifier(min(NEIGHBOURS, n_clips), metric="cosine"))


def score(
    kind: ProbeKind, x_train: Embeddings, y_train: ClassNumbers, x_test: Embeddings, y_test: ClassNumbers
) -> float:
    """Macro accuracy on the test clips of a probe fitted to the training clips."""
    return macro_accuracy(y_test, make_probe(kind, len(x_train)).fit(x_train, y_train).predict(x_test))


def cross_validated(kind: ProbeKind, x: Embeddings, y: ClassNumbers, groups: NDArray[Any]) -> float | None:
    """Macro accuracy of all clips, each guessed by a probe that saw no clip of its group; None where a class has
    fewer than two groups, so that no such probe knows it."""
    guesses = cross_fitted(kind, x, y, groups)
    return None if guesses is None else macro_accuracy(y, guesses)


def cross_fitted(kind: ProbeKind, x: Embeddings, y: ClassNumbers, groups: NDArray[Any]) -> ClassNumbers | None:
    """The guesses (n,) of probes that saw no clip of a guess's group; None as `cross_validated`."""
    from sklearn.model_selection import StratifiedGroupKFold

    if fewest_groups(y, groups) < 2:
        return None
    guesses = np.empty(len(y), y.dtype)
    folds = min(FOLDS, fewest_groups(y, groups))
    for train, test in StratifiedGroupKFold(folds).split(x, y, groups):
        guesses[test] = make_probe(kind, len(train)).fit(x[train], y[train]).predict(x[test])
    return guesses


def fewest_groups(y: ClassNumbers, groups: NDArray[Any]) -> int:
    """Groups of the class that has the fewest."""
    return min(len(set(groups[y == label].tolist())) for label in np.unique(y))


def effective_rank(x: Embeddings) -> float:
    """Dimensions that the embeddings use: exp of the entropy of their normalised singular values (Roy & Vetterli 2007).

    1 when the encoder has collapsed to a line, at most min(n - 1, E); the mean is taken off first.
    """
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if not singular[0] > 0:
        return 1.0
    shares = singular[singular > 0] / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


TARGETS = {"device": "device", "city": "city", "scene": "scene_label"}
"""What is read from the embeddings, and its column of the clip table."""


def read_out(
    embeddings: Mapping[str, NDArray[np.floating]], clips: pa.Table, labels: Labels, layer: int
) -> dict[str, Any]:
    """Macro accuracy of a linear probe, cross-validated by group, for every kind of embeddings (n, E) of some clips.

    Keys: layer; targets: device, city, scene → names, clips, groups, chance (of macro accuracy: one in the number of
    names); scores: embeddings → target → macro accuracy. A name counts where it has at least as many groups as there
    are folds, a target where two names do; scenes only where a clip has one.
    """
    groups = np.array(pc.coalesce(clips["group"], clips["clip_id"]).to_pylist())
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
