"""Which points of a sweep can't be told from the winner, by their predictions for the clips of split val. No Ray.

The winner of many points is partly the luckiest of them. Each finished trial therefore keeps its predictions, and every
other point is compared with the winner's by the paired test over groups, corrected for the number of points.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.labels import Labels
from raymae.evaluation.scores import KINDS, Part, comparisons, corrected
from raymae.storage.folder import Folder
from raymae.sweep.results import Record, best_of

PREDICTIONS, CLASSES = "predictions", b"classes"
COLUMNS = ["clip_id", "split", "group", "scene_label"]
ALPHA = 0.05
"""Corrected p-value from which on a point can't be told from the winner."""

Interval = tuple[float, float] | None
"""95 % bootstrap interval over groups; None where a class has too few groups."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A finished trial beside the winner."""

    interval: Interval
    """Of its score."""
    behind: float = 0.0
    """The winner's score minus its own."""
    behind_interval: Interval = None
    p: float | None = None
    """p-value of that difference, corrected by Holm's method for the number of points; None for the winner itself."""

    @property
    def is_tied(self) -> bool:
        """Whether the point can't be told from the winner, or is it."""
        return self.p is None or self.p >= ALPHA


Standings = Mapping[str, Standing]
"""By key of the point; without trials whose predictions are missing."""


def write_predictions(
    folder: Folder,
    key: str,
    clips: pa.Table,
    class_names: Sequence[str],
    probabilities: NDArray[np.float32],
    labels: Labels = "single",
) -> float:
    """Keep the class probabilities (n, C) of a trial for the labelled clips of split val; returns their score."""
    table = clips.select(COLUMNS).append_column("probabilities", pa.array(list(probabilities), pa.list_(pa.float32())))
    table = table.replace_schema_metadata({CLASSES: json.dumps(list(class_names)).encode()})
    folder.write_table(f"{PREDICTIONS}/{key}.parquet", table)
    return float(_scores(table, class_names, labels)[KINDS[labels].HEADLINE])


def read_predictions(folder: Folder, keys: Sequence[str]) -> tuple[dict[str, pa.Table], list[str]]:
    """The predictions of the trials that have some, by key, and the classes of all of them: points with other training
    clips may have other classes, to which their probability is 0."""
    there = {name.removesuffix(".parquet") for name in (folder / PREDICTIONS).names()}
    found = {key: folder.read_table(f"{PREDICTIONS}/{key}.parquet") for key in dict.fromkeys(keys) if key in there}
    own = {key: json.loads(table.schema.metadata[CLASSES]) for key, table in found.items()}
    names = sorted({name for some in own.values() for name in some})
    return {
        key: table if own[key] == names else _widened(table, own[key], names) for key, table in found.items()
    }, names


def _widened(table: pa.Table, own: Sequence[str], names: Sequence[str]) -> pa.Table:
    wide = np.zeros((len(table), len(names)), np.float32)
    wide[:, [names.index(name) for name in own]] = np.stack(table["probabilities"].to_numpy())
    column = pa.array(list(wide), pa.list_(pa.float32()))
    return table.set_column(table.column_names.index("probabilities"), "probabilities", column)


def standings(records: Sequence[Record], folder: Folder, labels: Labels) -> Standings:
    """Every finished trial beside the winner (`best_of`)."""
    winner = best_of(records)
    keys = [one.key for one in records if one.status == "finished" and one.score is not None and one.is_whole]
    tables, names = read_predictions(folder, keys)
    if winner is None or winner.key not in tables:
        return {}
    others = [key for key in tables if key != winner.key]
    compared = corrected({key: comparisons(tables[winner.key], tables[key], names, labels) for key in others})
    found = {winner.key: Standing(interval=_interval(tables[winner.key], names, labels))}
    for key in others:
        one = compared[key]["val"]
        found[key] = Standing(
            interval=_interval(tables[key], names, labels),
            behind=one["value"],
            behind_interval=one["interval"],
            p=one["p_holm"],
        )
    return found


def _interval(table: pa.Table, names: Sequence[str], labels: Labels) -> Interval:
    found: Interval = _scores(table, names, labels)[f"{KINDS[labels].HEADLINE}_ci"]
    return found


def _scores(table: pa.Table, names: Sequence[str], labels: Labels) -> dict[str, Any]:
    return Part(table, names, labels).domain_scores(np.ones(len(table), bool))


def tied(records: Sequence[Record], found: Standings) -> list[Record]:
    """The winner, and after it the finished trials that can't be told from it, the best first."""
    winner = best_of(records)
    if winner is None:
        return []
    others = {one.key: one for one in records if one.status == "finished" and one.key in found}
    others.pop(winner.key, None)
    level = [one for key, one in others.items() if found[key].is_tied]
    return [winner, *sorted(level, key=lambda one: -(one.score or 0.0))]


def chosen(records: Sequence[Record], found: Standings, prefer: Literal["best", "cheap"]) -> Record | None:
    """The winner; or of the points that can't be told from it the cheapest in training, of equal ones the best."""
    level = tied(records, found)
    if not level or prefer == "best":
        return level[0] if level else None
    return min(level, key=lambda one: np.inf if one.flops is None else one.flops)
