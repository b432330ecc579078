"""Scores of predictions by held-out split, device and city, in which each clip counts exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.datasets.labels import Labels
from raymae.datasets.rows import group_ids, held_out
from raymae.evaluation import multi_label as multi
from raymae.evaluation import single_label as single
from raymae.evaluation.paired_test import holm

Evaluation = dict[str, dict[str, Any]]
"""Scores by split, as returned by `evaluation`."""

TrainedOn = Mapping[str, Mapping[str, Sequence[str]]]
"""By "device" and "city": the names in the clips of split train, and of split pool."""

KINDS: dict[Labels, ModuleType] = {"single": single, "multi": multi}
"""Modules with the scores of single-label and multi-label clips."""

DOMAINS = {"device": "devices", "city": "cities"}
"""Columns of the clip table by which scores are broken down, and their plurals."""

UNKNOWN = "unknown"

MISTAKES = 20
"""Number of mistakes listed per split, the most confident ones."""

DESCRIBED = ("clip_id", "path", "start_seconds", "end_seconds", "device", "city", "group")
"""Columns of their clips that are listed, of those that there are."""


@dataclass(frozen=True)
class Part:
    """Labelled clips of a split with the class probabilities of a model."""

    clips: pa.Table
    class_names: Sequence[str]
    labels: Labels

    @property
    def kind(self) -> ModuleType:
        """The module that scores these clips."""
        return KINDS[self.labels]

    @cached_property
    def truth(self) -> NDArray[Any]:
        """Class numbers (n,), or multi-hot targets (n, C) of multi-label clips."""
        return np.asarray(self.kind.truth_of(self.clips, self.class_names))

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(n, C)"""
        flat = pc.list_flatten(self.clips["probabilities"]).to_numpy()
        return flat.reshape(len(self.clips), len(self.class_names))

    @cached_property
    def groups(self) -> list[str]:
        """The group of each clip; a clip without one is a group of its own."""
        return list(group_ids(self.clips).to_pylist())

    def scores(self) -> dict[str, Any]:
        """All scores of the split."""
        return dict(self.kind.scores(self.truth, self.probabilities, self.groups, self.class_names))

    def domain_scores(self, rows: NDArray[np.bool_]) -> dict[str, Any]:
        """Scores of the clips selected by a mask (n,)."""
        groups = [group for group, there in zip(self.groups, rows, strict=True) if there]
        return dict(self.kind.domain_scores(self.truth[rows], self.probabilities[rows], groups))


def check_complete(predictions: pa.Table, clips: pa.Table) -> None:
    """Raise ValueError unless `predictions` hold every labelled held-out clip of `clips` exactly once, and no other."""
    wanted, found = held_out(clips), held_out(predictions)
    for split in wanted | found:
        expected = wanted[split]["clip_id"] if split in wanted else pa.chunked_array([[]], pa.string())
        scored = found[split]["clip_id"] if split in found else pa.chunked_array([[]], pa.string())
        counts = pc.value_counts(scored)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        missing = expected.filter(pc.invert(pc.is_in(expected, value_set=scored)))
        extra = scored.filter(pc.invert(pc.is_in(scored, value_set=expected)))
        for names, problem in (
            (repeated, "was scored more than once"),
            (missing, "was not scored"),
            (extra, "is not in the split"),
        ):
            if len(names):
                raise ValueError(
                    f"split {split} has {len(expected)} labelled clips and {len(scored)} were scored: clip "
                    f"{names[0].as_py()!r} {problem} ({len(names)} such); every clip has to count exactly once"
                )


def training_domains(clips: pa.Table) -> dict[str, dict[str, list[str]]]:
    """The devices and cities trained on: "device" and "city" → split train and pool → sorted names."""
    found: dict[str, dict[str, list[str]]] = {}
    for domain in DOMAINS:
        found[domain] = {}
        for split in ("train", "pool"):
            names = pc.unique(clips.filter(pc.equal(clips["split"], split))[domain]).drop_null()
            found[domain][split] = sorted(names.to_pylist())
    return found


def evaluation(
    predictions: pa.Table, class_names: Sequence[str], labels: Labels = "single", trained_on: TrainedOn | None = None
) -> Evaluation:
    """Scores of each held-out split, val first, then test…, from a clip table with a column of class probabilities.

    Only labelled clips count. Keys, where each `<score>_ci` is [low, high] or None:
        clips, groups; log_loss and ece with their _ci; reliability: count, confidence, right by bin; missing_classes.
        single: macro_accuracy, accuracy with their _ci; confusion (rows are the truth); by_class: name → clips, groups,
            recall, precision, f1 with their _ci (None without a clip, or without a prediction).
        multi: mAP, mAP_ci; by_class: name → clips, groups, average_precision, average_precision_ci. log_loss is binary,
            the mean over classes, and like ece has no _ci.
        devices, cities: name → clips, groups, scores, and seen (in a clip of split train; None without `trained_on`).
        seen_devices, unseen_devices, seen_cities, unseen_cities: the same over all of them, or None without any.
        accuracy_by_device, accuracy_by_city (multi: mAP_by_…): name → score.
    A clip without a device or city counts as "unknown", which is neither seen nor unseen.

    Raises ValueError for a label that is not in `class_names`.
    """
    found = {}
    for split, clips in held_out(predictions).items():
        part = Part(clips, class_names, labels)
        found[split] = part.scores() | _domains(part, trained_on)
    return found


def _domains(part: Part, trained_on: TrainedOn | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for domain, plural in DOMAINS.items():
        names = np.array(pc.fill_null(part.clips[domain], UNKNOWN).to_pylist())
        trained = set(trained_on[domain]["train"]) if trained_on else set()
        found[plural] = {
            name: {
                "seen": None if trained_on is None or name == UNKNOWN else name in trained,
                **part.domain_scores(names == name),
            }
            for name in np.unique(names).tolist()
        }
        for seen in (True, False):
            mine = [name for name, scores in found[plural].items() if scores["seen"] is seen]
            rows = np.isin(names, mine)
            found[f"{'seen' if seen else 'unseen'}_{plural}"] = part.domain_scores(rows) if mine else None
        measure = part.kind.BY_DOMAIN
        found[f"{measure}_by_{domain}"] = {name: scores[measure] for name, scores in found[plural].items()}
    return found


def mistakes(predictions: pa.Table, class_names: Sequence[str], labels: Labels = "single") -> dict[str, list[Any]]:
    """By split, the most confident wrong predictions, one per group, as clips of a group tend to be wrong together.

    Keys: clip_id, path, start_seconds and end_seconds of parts, device, city, group, true, predicted, confidence, and
    for its group group_wrong (number of wrong clips) and group_clips.
    """
    found = {}
    for split, clips in held_out(predictions).items():
        part = Part(clips, class_names, labels)
        wrong = part.kind.mistakes(part.truth, part.probabilities, class_names)
        first: dict[str, dict[str, Any]] = {}
        for one in wrong:
            first.setdefault(part.groups[one["row"]], one)
        members, misses = Counter(part.groups), Counter(part.groups[row] for row in {one["row"] for one in wrong})
        worst = list(first.items())[:MISTAKES]
        described = (
            clips.select([name for name in DESCRIBED if name in clips.column_names])
            .take(np.array([one["row"] for _, one in worst], np.int64))
            .to_pylist()
        )
        found[split] = [
            row
            | {key: value for key, value in one.items() if key != "row"}
            | {"group_wrong": misses[group], "group_clips": members[group]}
            for row, (group, one) in zip(described, worst, strict=True)
        ]
    return found


def comparisons(
    first: pa.Table, second: pa.Table, class_names: Sequence[str], labels: Labels = "single"
) -> dict[str, dict[str, Any]]:
    """By split, two models' headline scores and their paired difference over groups, first minus second.

    Keys: clips, first, second, and the fields of `paired_test.Difference`. Raises ValueError unless the two tables hold
    the same clips with the same labels.
    """
    order = [("split", "ascending"), ("clip_id", "ascending")]
    splits, others = held_out(first.sort_by(order)), held_out(second.sort_by(order))
    if set(splits) != set(others):
        raise ValueError(f"their splits differ: {', '.join(splits)} and {', '.join(others)}")
    found = {}
    for split in splits:
        a, b = Part(splits[split], class_names, labels), Part(others[split], class_names, labels)
        _check_same(split, a.clips, b.clips)
        kind = a.kind
        everything = np.ones(len(a.clips), bool)
        found[split] = {
            "clips": len(a.clips),
            "first": a.domain_scores(everything)[kind.HEADLINE],
            "second": b.domain_scores(everything)[kind.HEADLINE],
            **asdict(kind.difference(a.truth, a.probabilities, b.probabilities, a.groups)),
        }
    return found


def corrected(compared: Mapping[str, Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """`comparisons` by model and split with `p_holm` beside each p_value: corrected for the number of all of them."""
    places = [(name, split) for name, by_split in compared.items() for split in by_split]
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in compared}
    for (name, split), p in zip(places, holm([compared[a][b]["p_value"] for a, b in places]), strict=True):
        found[name][split] = compared[name][split] | {"p_holm": p}
    return found


def _check_same(split: str, first: pa.Table, second: pa.Table) -> None:
    if len(first) != len(second):
        raise ValueError(f"their clips of {split} differ: {len(first)} and {len(second)}")
    for column in ("clip_id", "scene_label"):
        for one, other in zip(first[column].to_pylist(), second[column].to_pylist(), strict=True):
            if one != other:
                raise ValueError(f"their clips of {split} differ in {column}: {one!r} and {other!r}")
