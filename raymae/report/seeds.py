"""Several evaluations of one protocol, of other seeds: mean and standard deviation of every score."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raymae.report.document import Table, result_table
from raymae.report.evaluation import KINDS
from raymae.report.sections import model_title

UNMERGED = ("confusion", "reliability", "seen")
"""What has no mean: counts and bins stand in each evaluation."""


def merge_seeds(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Evaluations (`report.json`, or what `evaluate` returns) of several seeds as one.

    Keys: seeds (how many), splits (the name of each one's split), labels, metrics: model → split → … as in an evaluation,
    with {"mean", "sd", "values"} in place of every number (sd: of the sample, n − 1; None for one seed). Intervals are
    left out, for they say what other clips would change, and the deviation, what other seeds do; a score that some
    seed lacks is left out too.

    Raises ValueError where there is none, or their models, splits or classes differ.
    """
    if not evaluations:
        raise ValueError("there is no evaluation to merge")
    first = evaluations[0]
    for number, other in enumerate(evaluations[1:], start=2):
        for what, mine, theirs in (
            ("labels", first["labels"], other["labels"]),
            ("classes", first["classes"], other["classes"]),
            ("models", list(first["metrics"]), list(other["metrics"])),
            ("splits", _splits(first), _splits(other)),
        ):
            if mine != theirs:
                raise ValueError(f"evaluations 1 and {number} differ in their {what}: {mine} and {theirs}")
    return {
        "seeds": len(evaluations),
        "splits": [one["split"] for one in evaluations],
        "labels": first["labels"],
        "metrics": _merged([one["metrics"] for one in evaluations]),
    }


def _splits(evaluation: Mapping[str, Any]) -> list[str]:
    return list(next(iter(evaluation["metrics"].values())))


def _merged(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        names = [name for name in values[0] if all(name in value for value in values)]
        wanted = [name for name in names if name not in UNMERGED and not name.endswith("_ci")]
        merged = {name: _merged([value[name] for value in values]) for name in wanted}
        return {name: value for name, value in merged.items() if value is not None}
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": list(values)}


def mean_and_sd(merged: Mapping[str, Any]) -> str:
    """0.612 ± 0.034"""
    return f"{merged['mean']:.3f}" + (f" ± {merged['sd']:.3f}" if merged["sd"] is not None else "")


def seeds_text(merged: Mapping[str, Any]) -> str:
    """The headline of every model and split as a Markdown table, mean ± standard deviation, and the splits' names."""
    kind = KINDS[merged["labels"]]
    splits = list(next(iter(merged["metrics"].values())))
    rows = [
        [model_title(name), *(mean_and_sd(found[split][kind.HEADLINE]) for split in splits)]
        for name, found in merged["metrics"].items()
    ]
    names = list(dict.fromkeys(merged["splits"]))
    return "\n\n".join(
        [
            f"{kind.TITLE} by split, mean ± standard deviation of {merged['seeds']} runs. Split: {'; '.join(names)}.",
            result_table(Table(["model", *splits], rows)),
        ]
    )
