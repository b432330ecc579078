"""From predictions to figures: every held-out split, its devices and cities, each clip exactly once."""

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
from raymae.datasets.rows import held_out
from raymae.evaluation import multi_label as multi
from raymae.evaluation import single_label as single

Evaluation = dict[str, dict[str, Any]]
"""Metrics by split, as `evaluation` gives them."""

Heard = Mapping[str, Mapping[str, Sequence[str]]]
"""By "device" and "city": the names in the clips of split train, and of split pool."""

KINDS: dict[Labels, ModuleType] = {"single": single, "multi": multi}
"""What is measured, by whether a clip has one class or several."""

DOMAINS = {"device": "devices", "city": "cities"}
"""Columns of the clip table by which results are parted, and what they are called together."""

UNKNOWN = "unknown"

MISTAKES = 20
"""Most confident mistakes that are listed of a split."""

DESCRIBED = ["clip_id", "path", "device", "city", "group"]
"""What is said of their clips."""


@dataclass(frozen=True)
class Part:
    """Some labelled clips of a split, with what a model makes of them."""

    clips: pa.Table
    class_names: Sequence[str]
    labels: Labels

    @property
    def kind(self) -> ModuleType:
        """What is measured."""
        return KINDS[self.labels]

    @cached_property
    def truth(self) -> NDArray[Any]:
        """Class numbers (n,), or (n, C) where clips have several classes."""
        return np.asarray(self.kind.truth_of(self.clips, self.class_names))

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """(n, C)"""
        flat = pc.list_flatten(self.clips["probabilities"]).to_numpy()
        return flat.reshape(len(self.clips), len(self.class_names))

    @cached_property
    def groups(self) -> list[str]:
        """The group of each clip; one without is a group of its own."""
        return list(pc.coalesce(self.clips["group"], self.clips["clip_id"]).to_pylist())

    def scores(self) -> dict[str, Any]:
        """All that is said of a split."""
        return dict(self.kind.scores(self.truth, self.probabilities, self.groups, self.class_names))

    def domain_scores(self, rows: NDArray[np.bool_]) -> dict[str, Any]:
        """What is said of some of the clips."""
        groups = [group for group, there in zip(self.groups, rows, strict=True) if there]
        return dict(self.kind.domain_scores(self.truth[rows], self.probabilities[rows], groups))


def check_complete(predictions: pa.Table, clips: pa.Table) -> None:
    """ValueError unless `predictions` hold every labelled held-out clip of `clips` exactly once, and no other."""
    wanted, found = held_out(clips), held_out(predictions)
    for split in wanted | found:
        due = wanted[split]["clip_id"] if split in wanted else pa.chunked_array([[]], pa.string())
        came = found[split]["clip_id"] if split in found else pa.chunked_array([[]], pa.string())
        counts = pc.value_counts(came)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        absent = due.filter(pc.invert(pc.is_in(due, value_set=came)))
        strange = came.filter(pc.invert(pc.is_in(came, value_set=due)))
        for names, what in (
            (twice, "was scored more than once"),
            (absent, "was not scored"),
            (strange, "is none of it"),
        ):
            if len(names):
                raise ValueError(
                    f"split {split} has {len(due)} labelled clips and {len(came)} were scored: clip "
                    f"{names[0].as_py()!r} {what} ({len(names)} such); every clip has to count exactly once"
                )


def heard(clips: pa.Table) -> dict[str, dict[str, list[str]]]:
    """The devices and cities of the clips of split train, and of split pool: what training has heard."""
    found: dict[str, dict[str, list[str]]] = {}
    for domain in DOMAINS:
        found[domain] = {}
        for split in ("train", "pool"):
            names = pc.unique(clips.filter(pc.equal(clips["split"], split))[domain]).drop_null()
            found[domain][split] = sorted(names.to_pylist())
    return found


def evaluation(
    predictions: pa.Table, class_names: Sequence[str], labels: Labels = "single", known: Heard | None = None
) -> Evaluation:
    """Metrics of each held-out split, val first, then test…, from clips with a column of probabilities.

    Only labelled clips count. Keys, where each `<score>_ci` is [low, high] or None:
        clips, groups; log_loss and ece with their _ci; reliability: count, confidence, right by bin; missing_classes.
        single: macro_accuracy, accuracy with their _ci; confusion (rows are the truth); by_class: name → clips, groups,
            recall, precision, f1 with their _ci (None where there is no clip, or none predicted).
        multi: mAP, mAP_ci; by_class: name → clips, groups, average_precision, average_precision_ci. log_loss is binary,
            the mean over classes, without a _ci, and so is ece.
        devices, cities: name → clips, groups, scores, and seen (in a clip of split train; None without `known`).
        seen_devices, unseen_devices, seen_cities, unseen_cities: the same of all clips of such, or None without any.
        accuracy_by_device, accuracy_by_city (multi: mAP_by_…): name → score.
    A clip whose device is not known is "unknown", neither seen nor unseen.

    Raises ValueError for a label that is not in `class_names`.
    """
    found = {}
    for split, clips in held_out(predictions).items():
        part = Part(clips, class_names, labels)
        found[split] = part.scores() | _domains(part, known)
    return found


def _domains(part: Part, known: Heard | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for domain, plural in DOMAINS.items():
        names = np.array(pc.fill_null(part.clips[domain], UNKNOWN).to_pylist())
        trained = set(known[domain]["train"]) if known else set()
        found[plural] = {
            name: {
                "seen": None if known is None or name == UNKNOWN else name in trained,
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
    """By split, the surest wrong guesses, one for each group: its clips are wrong together, and would fill the list.

    Keys: clip_id, path, device, city, group, true, predicted, confidence, and of its group group_wrong, the clips that
    are wrong, and group_clips.
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
        described = clips.select(DESCRIBED).take(np.array([one["row"] for _, one in worst], np.int64)).to_pylist()
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
    """By split, the first model's headline score, the second's, and their paired difference over groups.

    Keys: clips, first, second, and those of `compare.Difference`. Raises ValueError where the two tables don't hold the
    same clips with the same labels.
    """
    order = [("split", "ascending"), ("clip_id", "ascending")]
    ours, theirs = held_out(first.sort_by(order)), held_out(second.sort_by(order))
    if set(ours) != set(theirs):
        raise ValueError(f"their splits differ: {', '.join(ours)} and {', '.join(theirs)}")
    found = {}
    for split in ours:
        a, b = Part(ours[split], class_names, labels), Part(theirs[split], class_names, labels)
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


def _check_same(split: str, ours: pa.Table, theirs: pa.Table) -> None:
    if len(ours) != len(theirs):
        raise ValueError(f"their clips of {split} differ: {len(ours)} and {len(theirs)}")
    for column in ("clip_id", "scene_label"):
        for one, other in zip(ours[column].to_pylist(), theirs[column].to_pylist(), strict=True):
            if one != other:
                raise ValueError(f"their clips of {split} differ in {column}: {one!r} and {other!r}")
