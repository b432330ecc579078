"""A round of pseudo-labels: the teacher's guesses, their calibration and acceptance, and the report. Without Ray.

How clips are classified and embedded is given by the caller: over a cluster (`raymae.pipeline.run`) or in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config.stages import round_name, teacher_of, turn_of
from raymae.datasets.rows import Rows, class_names, rows_of
from raymae.evaluation.report import write_round
from raymae.features.store import FeatureStore
from raymae.inference.classifier import check_teacher
from raymae.inference.embedder import Reading
from raymae.pipeline.plan.plan import Plan
from raymae.pseudo_labels.calibration import (
    Calibration,
    by_probe,
    can_cross_fit,
    enough_groups,
    nothing,
    on_val,
    too_few,
)
from raymae.pseudo_labels.table import FILE, Round, against_truth, agreement, pseudo_label, summary
from raymae.storage.folder import Folder
from raymae.training.batches.order import sample

PROBED = 2000
"""Most labelled training clips that a probe is cross-fitted on: its accuracy is known to a point then."""

Classify = Callable[[Rows, Folder], NDArray[np.float32]]
"""Class probabilities (n, C) of rows of the store by a classifier, averaged over `pseudo_label.views`."""
Embed = Callable[[Rows, Reading], NDArray[np.float32]]
"""Embeddings (n, E) of rows of the store."""


def run_round(plan: Plan, name: str, classify: Classify, embed: Embed) -> dict[str, Any]:
    """Label the unlabelled training clips as the node `name` of a plan says; writes the table and its report.

    Returns `pseudo_label.summary` and, where known, agreement (with the round before) and truth. Raises ValueError for
    a teacher of other classes than the table's.
    """
    store, config, artifact = plan.store, plan.config.pseudo_label, plan.nodes[name].artifact
    teacher = plan.nodes[teacher_of(name)].artifact
    names = class_names(store.clips)
    check_teacher(teacher, names)
    unlabelled = rows_of(store.clips, "train", labelled=False)
    held_out = rows_of(store.clips, "val", labelled=True)
    probabilities, calibration = np.zeros((0, len(names)), np.float32), nothing("there is no unlabelled clip to label")
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
    """The teacher's temperature, as `raymae.pseudo_labels.calibration` explains it, from its probabilities of the
    unlabelled training clips (n, C) and of the labelled clips of val (m, C)."""
    store, config = plan.store, plan.config
    truth, groups = labels_of(store, rows_of(store.clips, "val", labelled=True))
    why = enough_groups(truth, groups, held_out.shape[1])
    if why is None:
        return on_val(held_out, truth, groups)
    rows = sample(rows_of(store.clips, "train", labelled=True), PROBED, config.seed)
    truth, groups = labels_of(store, rows)
    if not can_cross_fit(truth, groups):
        return nothing(f"{why}, and {too_few(truth, groups)}")
    reading = Reading(teacher, plan.start("finetune"), config.finetune.subtract_band_mean, config.finetune.pool)
    return by_probe(unlabelled, embed(rows, reading), truth, groups, why)


def labels_of(store: FeatureStore, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Class numbers and groups (n,) of labelled rows; a clip without a group is one of its own."""
    clips = store.clips.take(rows)
    truth = pc.index_in(clips["scene_label"], value_set=pa.array(class_names(store.clips), pa.string()))
    groups = pc.coalesce(clips["group"], clips["clip_id"]).to_pylist()
    return truth.to_numpy().astype(np.int64), np.array(groups, np.str_)


def compared(plan: Plan, turn: int, made: Round) -> dict[str, Any]:
    """agreement with the round before, and the score against the truth; None where there is no such."""
    before = None
    if turn > 1:
        earlier = plan.nodes[round_name("pseudo_label", turn - 1)].artifact
        before = agreement(made.table, earlier.read_table(FILE))
    truth = None if plan.truth is None else against_truth(made.table, plan.truth)
    return {"agreement": before, "truth": truth}
