"""Which weights a fine-tuning keeps: those of the best validation or the last. Without torch: the plan reads it too.

A small or leaking validation split would select by chance, so weights are selected only if the split is large enough
and shares no group with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymae.datasets.labels import Labels, label_lists

METRICS = {"single": "val/macro_accuracy", "multi": "val/mAP"}
"""The metric to select by, for each `finetune.labels`."""
MIN_GROUPS = 20
"""Fewest groups of each class in val: with fewer, the spread of a recall (0.11 at 0.5) hides any gain of selecting."""


@dataclass(frozen=True)
class Selection:
    """Whether the best validation's weights are kept, and why."""

    best: bool
    reason: str
    metric: str = METRICS["single"]


LAST = Selection(False, "this stage has no validation metric to select by")


def selection(clips: pa.Table, class_names: Sequence[str], labels: Labels = "single") -> Selection:
    """The selection for a clip table of single-label or multi-label clips."""
    return replace(_rule(clips, class_names, labels), metric=METRICS[labels])


def _rule(clips: pa.Table, class_names: Sequence[str], labels: Labels) -> Selection:
    """The rule, from the columns scene_label, group and split of a clip table.

    The best weights if every class has at least `MIN_GROUPS` groups among the labelled clips of val, every clip of val
    and train has a group, and no group of val occurs in another split; else the last weights.
    """
    used = ("scene_label", "group", "split")  # the filters below copy what they keep
    clips = clips.select([name for name in used if name in clips.column_names])
    in_val = pc.equal(clips["split"], "val")
    val = clips.filter(pc.and_(in_val, pc.is_valid(clips["scene_label"])))
    if not len(val):
        return Selection(False, "split val has no labelled clip")
    for split in ("val", "train"):
        count = pc.sum(pc.and_(pc.equal(clips["split"], split), pc.is_null(clips["group"]))).as_py()
        if count:
            return Selection(False, f"{count} clips of split {split} have no group, so val may share groups with train")
    others = clips.filter(pc.and_(pc.invert(in_val), pc.is_valid(clips["group"])))
    shared = others.filter(pc.is_in(others["group"], value_set=pc.unique(val["group"])))
    if len(shared):
        row = shared.slice(0, 1).to_pylist()[0]
        return Selection(False, f"group {row['group']!r} of split val occurs in split {row['split']} too")
    classes = label_lists(val["scene_label"], labels)
    groups_of = val["group"].take(pc.list_parent_indices(classes))
    val = pa.table({"scene_label": pc.list_flatten(classes), "group": groups_of})
    pairs = val.group_by("scene_label").aggregate([("group", "count_distinct")]).to_pydict()
    groups = dict(zip(pairs["scene_label"], pairs["group_count_distinct"], strict=True))
    name = min(class_names, key=lambda one: groups.get(one, 0))
    fewest = groups.get(name, 0)
    if fewest < MIN_GROUPS:
        return Selection(False, f"split val has {fewest} groups of {name!r}, fewer than {MIN_GROUPS}")
    return Selection(True, f"split val has at least {fewest} groups of every class and shares none with another split")


def described(chosen: Mapping[str, Any]) -> str:
    """The weights that a stage kept, in a line, from the "selection" of its `done.json`."""
    score = "" if chosen["value"] is None else f", {chosen['metric']} {chosen['value']:.3f}"
    kind = "EMA weights" if chosen["averaged"] else "weights"
    return f"keeps the {chosen['weights']} {kind} (step {chosen['step']}{score}): {chosen['reason']}"
