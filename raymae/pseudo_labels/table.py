"""Pseudo-labels: the table of a teacher's guesses with their provenance, and scores of a round. Works without Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config import PseudoLabelConfig, redact
from raymae.datasets.rows import group_ids
from raymae.pseudo_labels.acceptance import Acceptance, decide, guesses, reason_text, reason_texts
from raymae.pseudo_labels.calibration import Calibration, apply_temperature

FILE = "pseudo_labels.parquet"


@dataclass(frozen=True)
class Round:
    """A round of pseudo-labels: the teacher's guesses for the unlabelled clips, and which are accepted."""

    number: int
    """From 1."""
    teacher: str
    """URL of its classifier's folder."""
    table: pa.Table
    """A row per clip: see `pseudo_label`."""
    acceptance: Acceptance
    calibration: Calibration
    class_names: Sequence[str]
    config: PseudoLabelConfig


def pseudo_label(
    clips: pa.Table,
    probabilities: NDArray[np.float32],
    calibration: Calibration,
    class_names: Sequence[str],
    config: PseudoLabelConfig,
    teacher: str,
    number: int = 1,
) -> Round:
    """Decide which guesses become labels.

    Args:
        clips: unlabelled clips of split train, with clip_id, group, split and scene_label.
        probabilities: (n, C), the teacher's own, before calibration.

    Columns of the table, a row per clip: clip_id, pseudo_label, raw_confidence, confidence (calibrated), round,
    teacher, accepted, reason (of a refusal), and with soft labels probabilities (calibrated and sharpened; in the order
    of the classes).
    """
    unlabelled = pc.and_(pc.equal(clips["split"], "train"), pc.is_null(clips["scene_label"]))
    assert pc.all(unlabelled).as_py() is not False, "pseudo-labels are for unlabelled clips of split train only"
    calibrated = apply_temperature(probabilities, calibration.temperature)
    groups = np.array(group_ids(clips).to_pylist(), np.str_)
    acceptance = decide(calibrated, groups, config)
    guess, confidence = guesses(calibrated)
    columns = {
        "clip_id": clips["clip_id"],
        "pseudo_label": pa.array([class_names[index] for index in guess], pa.string()),
        "raw_confidence": pa.array(guesses(probabilities)[1], pa.float32()),
        "confidence": pa.array(confidence, pa.float32()),
        "round": pa.array(np.full(len(clips), number), pa.int32()),
        "teacher": pa.array([redact(teacher)] * len(clips), pa.string()),
        "accepted": pa.array(acceptance.accepted, pa.bool_()),
        "reason": pa.array(reason_texts(acceptance, guess, config), pa.string()),
    }
    if config.labels == "soft":
        columns["probabilities"] = pa.array(
            list(apply_temperature(calibrated, config.sharpening)), pa.list_(pa.float32())
        )
    table = pa.table(columns).replace_schema_metadata({"class_names": json.dumps(list(class_names))})
    return Round(number, redact(teacher), table, acceptance, calibration, class_names, config)


# Scores of a round ----------------------------------------------------------------------------------------------------


def summary(found: Round) -> dict[str, Any]:
    """Counts of a round, for JSON.

    Keys: round, teacher, rule, labels, views; unlabelled, accepted, coverage; guessed_by_class, accepted_by_class,
    thresholds (by class, or None); refused (by reason); empty_classes (without an accepted label); temperature,
    calibrated_on, calibrated_on_clips; calibration (`calibration.Calibration`).
    """
    table, names = found.table, found.class_names
    accepted = table.filter(table["accepted"])
    guessed = Counter(table["pseudo_label"].to_pylist())
    kept = Counter(accepted["pseudo_label"].to_pylist())
    thresholds = found.acceptance.thresholds
    refused = Counter(reason for reason in found.acceptance.reasons.tolist() if reason)
    return {
        "round": found.number,
        "teacher": found.teacher,
        "rule": rule_of(found.config),
        "labels": found.config.labels,
        "views": found.config.views,
        "unlabelled": len(table),
        "accepted": len(accepted),
        "coverage": len(accepted) / max(1, len(table)),
        "guessed_by_class": {name: guessed[name] for name in names},
        "accepted_by_class": {name: kept[name] for name in names},
        "thresholds": None if thresholds is None else dict(zip(names, map(float, thresholds), strict=True)),
        "refused": {
            reason_text(reason, found.acceptance, found.config): count for reason, count in refused.most_common()
        },
        "empty_classes": [name for name in names if not kept[name]],
        "temperature": found.calibration.temperature,
        "calibrated_on": found.calibration.calibrated_on,
        "calibrated_on_clips": found.calibration.clips,
        "calibration": found.calibration.summary(),
    }


def rule_of(config: PseudoLabelConfig) -> str:
    """The rule and its limits, in words."""
    if config.coverage is not None:
        rule = f"the most confident {config.coverage:g} of each guessed class"
    elif config.rule == "fixed":
        rule = f"confidence of at least {config.confidence_threshold:g}"
    elif config.rule == "flexmatch":
        rule = f"FlexMatch, threshold {config.confidence_threshold:g} scaled by class, not below "
        rule += f"{config.threshold_floor:g}"
    else:
        rule = "FreeMatch, self-adaptive thresholds by class"
    limits = [("max_per_group", config.max_per_group), ("max_per_class", config.max_per_class)]
    limits += [("max_class_ratio", config.max_class_ratio)]  # type: ignore[list-item]
    return "; ".join([rule, *(f"{name} {value:g}" for name, value in limits if value is not None)])


def agreement(table: pa.Table, previous: pa.Table) -> dict[str, Any]:
    """Agreement of the guesses of two rounds, on the clips of both.

    Keys: clips, equal (share of equal guesses), kappa (Cohen's; None where all guesses are of one class), and
    accepted_clips and accepted_equal of the clips that both rounds accept (None without any).
    """
    from sklearn.metrics import cohen_kappa_score  # takes a second to import, which training doesn't need

    columns = ["clip_id", "pseudo_label", "accepted"]
    both = table.select(columns).to_pandas().merge(previous.select(columns).to_pandas(), on="clip_id")
    now, then = both["pseudo_label_x"], both["pseudo_label_y"]
    twice = both["accepted_x"] & both["accepted_y"]
    several = len(set(now) | set(then)) > 1
    return {
        "clips": len(both),
        "equal": float((now == then).mean()) if len(both) else None,
        "kappa": float(cohen_kappa_score(now, then)) if several else None,
        "accepted_clips": int(twice.sum()),
        "accepted_equal": float((now == then)[twice].mean()) if twice.any() else None,
    }


def against_truth(table: pa.Table, truth: pa.Table) -> dict[str, Any] | None:
    """Accuracy of the guesses on clips whose class is in `truth` (clip_id, scene_label); None without any.

    Keys: clips, accuracy; accepted_clips, accepted_accuracy (None without any); curve: threshold, coverage and accuracy
    of the guesses with at least that confidence, at every hundredth with any.
    """
    known = table.to_pandas().merge(truth.to_pandas(), on="clip_id")
    if not len(known):
        return None
    right, accepted = (known["pseudo_label"] == known["scene_label"]).to_numpy(), known["accepted"].to_numpy(bool)
    confidence = known["confidence"].to_numpy()
    curve: dict[str, list[float]] = {"threshold": [], "coverage": [], "accuracy": []}
    for threshold in np.arange(100) / 100:
        sure = confidence >= threshold
        if sure.any():
            curve["threshold"].append(float(threshold))
            curve["coverage"].append(float(sure.mean()))
            curve["accuracy"].append(float(right[sure].mean()))
    return {
        "clips": len(known),
        "accuracy": float(right.mean()),
        "accepted_clips": int(accepted.sum()),
        "accepted_accuracy": float(right[accepted].mean()) if accepted.any() else None,
        "curve": curve,
    }
