"""A round of pseudo-labels: the teacher's guesses, their calibration and acceptance, and the report. Works without Ray.

The caller passes the functions that classify and embed clips, on a cluster (`raymae.pipeline.run`) or in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config.stages import round_name, teacher_of, turn_of
from raymae.datasets.rows import Rows, class_names, group_ids, rows_of
from raymae.evaluation.report import write_round
from raymae.features.store import FeatureStore
from raymae.inference.classifier import check_teacher
from raymae.inference.embedder import Reading
from raymae.pipeline.plan.plan import Plan
from raymae.pseudo_labels.calibration import (
    Calibration,
    calibrated_by_probe,
    calibrated_on_val,
    cross_fit_problem,
    uncalibrated,
    val_problem,
)
from raymae.pseudo_labels.table import FILE, Round, against_truth, agreement, pseudo_label, summary
from raymae.storage.folder import Folder
from raymae.training.batches.order import sample

PROBED = 2000
"""Most labelled training clips that a probe is cross-fitted on: enough to know its accuracy to a point."""

Classify = Callable[[Rows, Folder], NDArray[np.float32]]
"""Class probabilities (n, C) of rows of the store by a classifier, averaged over `pseudo_label.views`."""
Embed = Callable[[Rows, Reading], NDArray[np.float32]]
"""Embeddings (n, E) of rows of the store."""


def run_round(plan: Plan, name: str, classify: Classify, embed: Embed) -> dict[str, Any]:
    """Run the node `name` of a plan: label the unlabelled training clips, and write the table and its report.

    Returns the summary of `raymae.pseudo_labels.table`, agreement (with the round before) and truth, each None where
    unknown. Raises ValueError for a teacher of other classes than the table's.
    """
    store, config, artifact = plan.store, plan.config.pseudo_label, plan.nodes[name].artifact
    teacher = plan.nodes[teacher_of(name)].artifact
    names = class_names(store.clips)
    check_teacher(teacher, names)
    unlabelled = rows_of(store.clips, "train", labelled=False)
    held_out = rows_of(store.clips, "val", labelled=True)
    probabilities = np.zeros((0, len(names)), np.float32)
    calibration = uncalibrated("there is no unlabelled clip to label")
    if len(unlabelled):
        found = classify(np.concatenate([unlabelled, held_out]), teacher)
        probabilities = found[: len(unlabelled)]
        calibration = calibrate(plan, teacher, probabilities, found[len(unlabelled) :], embed)
    clips = store.clips.take(unlabelled)
    turn = turn_of(name)[1]
    made = pseudo_label(clips, probabilities, calibration, names, config, teacher.url, turn)
    artifact.write_table(FILE, made.table)
    result = summary(made) | compared(plan, turn, made)
    write_round(result, artifact)
    return result


def calibrate(
    plan: Plan,
    teacher: Folder,
    unlabelled: NDArray[np.float32],
    held_out: NDArray[np.float32],
    embed: Embed,
) -> Calibration:
    """Fit the teacher's temperature (see `raymae.pseudo_labels.calibration`).

    Args:
        unlabelled: its probabilities of the unlabelled training clips (n, C).
        held_out: its probabilities of the labelled clips of val (m, C).
    """
    store, config = plan.store, plan.config
    truth, groups = labels_of(store, rows_of(store.clips, "val", labelled=True))
    why_not_val = val_problem(truth, groups, held_out.shape[1])
    if why_not_val is None:
        return calibrated_on_val(held_out, truth, groups)
    rows = sample(rows_of(store.clips, "train", labelled=True), PROBED, config.seed)
    truth, groups = labels_of(store, rows)
    why_no_probe = cross_fit_problem(truth, groups)
    if why_no_probe is not None:
        return uncalibrated(f"{why_not_val}, and {why_no_probe}")
    reading = Reading(teacher, plan.start("finetune"), config.finetune.subtract_band_mean, config.finetune.pool)
    return calibrated_by_probe(unlabelled, embed(rows, reading), truth, groups, why_not_val)


def labels_of(store: FeatureStore, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Class numbers and groups (n,) of labelled rows; a clip without a group is a group of its own."""
    clips = store.clips.take(rows)
    truth = pc.index_in(clips["scene_label"], value_set=pa.array(class_names(store.clips), pa.string()))
    return truth.to_numpy().astype(np.int64), np.array(group_ids(clips).to_pylist(), np.str_)


def compared(plan: Plan, turn: int, made: Round) -> dict[str, Any]:
    """agreement with the round before, and truth, the score against the true classes; None where there are none."""
    previous_agreement = None
    if turn > 1:
        previous = plan.nodes[round_name("pseudo_label", turn - 1)].artifact
        previous_agreement = agreement(made.table, previous.read_table(FILE, checked=True))
    truth = None if plan.truth is None else against_truth(made.table, plan.truth)
    return {"agreement": previous_agreement, "truth": truth}
