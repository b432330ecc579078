"""Pseudo-labels: which of a teacher's guesses become labels, with their provenance. No Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from raymae.config import PseudoLabelConfig


def soften(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities (n, C) at another temperature of their softmax."""
    logits = np.log(np.clip(probabilities, 1e-12, 1)) / temperature
    scaled = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(scaled / scaled.sum(1, keepdims=True), np.float32)


def fit_temperature(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The temperature with the smallest log loss on held-out clips (n, C), (n,); Guo et al. 2017."""

    def loss(log_temperature: float) -> float:
        right = soften(probabilities, float(np.exp(log_temperature)))[np.arange(len(truth)), truth]
        return float(-np.log(np.clip(right, 1e-12, 1)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def accept(
    guess: NDArray[np.int64], confidence: NDArray[np.float32], config: PseudoLabelConfig
) -> tuple[NDArray[np.bool_], float | None]:
    """Which guesses (n,) are accepted: those above the threshold, or the surest share of each predicted class."""
    if config.confidence_threshold is not None:
        return confidence >= config.confidence_threshold, config.confidence_threshold
    assert config.coverage is not None
    accepted = np.zeros(len(guess), bool)
    for label in np.unique(guess):
        mine = np.flatnonzero(guess == label)
        surest = mine[np.argsort(-confidence[mine], kind="stable")]
        accepted[surest[: max(1, round(config.coverage * len(mine)))]] = True
    return accepted, None


def pseudo_label_table(
    clip_ids: list[str],
    probabilities: NDArray[np.float32],
    temperature: float,
    class_names: list[str],
    config: PseudoLabelConfig,
    teacher: str,
) -> pa.Table:
    """One row per unlabelled clip: guess, raw and calibrated confidence, accepted or why not, teacher."""
    guess = probabilities.argmax(1) if len(probabilities) else np.zeros(0, np.int64)
    raw = probabilities.max(1) if len(probabilities) else np.zeros(0, np.float32)
    calibrated = soften(probabilities, temperature).max(1) if len(probabilities) else raw
    accepted, threshold = accept(guess, calibrated, config)
    refused = f"confidence below {threshold}" if threshold else f"not among the surest {config.coverage} of its class"
    return pa.table(
        {
            "clip_id": pa.array(clip_ids, pa.string()),
            "pseudo_label": pa.array([class_names[index] for index in guess], pa.string()),
            "raw_confidence": pa.array(raw, pa.float32()),
            "confidence": pa.array(calibrated, pa.float32()),
            "accepted": pa.array(accepted, pa.bool_()),
            "reason": pa.array(np.where(accepted, "", refused).tolist(), pa.string()),
            "teacher": pa.array([teacher] * len(guess), pa.string()),
        }
    )


def summary(table: pa.Table, class_names: list[str], temperature: float, calibrated_on: int) -> dict[str, Any]:
    """Counts for the report."""
    accepted = table.filter(table["accepted"])
    found = accepted["pseudo_label"].to_pylist()
    return {
        "unlabelled": len(table),
        "accepted": len(accepted),
        "coverage": len(accepted) / max(1, len(table)),
        "accepted_by_class": {name: found.count(name) for name in class_names},
        "temperature": temperature,
        "calibrated_on_clips": calibrated_on,
    }
