"""The trials of a sweep as tables: Markdown, for people, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from raymae.config import to_text
from raymae.evaluation.report.document import Table, table_text
from raymae.sweep.results import Record, ranked, reused
from raymae.sweep.space import Axis
from raymae.sweep.standing import Interval, Standing, Standings

NONE: Mapping[str, Standing] = {}


def trials_table(records: Sequence[Record], axes: Sequence[Axis], metric: str, found: Standings = NONE) -> Table:
    """The trials, best first."""
    beside = ["95 %", "behind the winner", "p (Holm)"] if found else []
    header = [*(axis.path for axis in axes), metric, *beside, "status", "TFLOP", "seconds", "note"]
    rows = [
        [
            *(to_text(one.changes[axis.path]) for axis in axes),
            "" if one.score is None else f"{one.score:.4f}",
            *(_beside(one, found) if found else []),
            one.status,
            "" if one.flops is None else f"{one.flops / 1e12:.3g}",
            f"{one.seconds:.0f}",
            one.error or reused(one),
        ]
        for one in ranked(records)
    ]
    return Table(header, rows, frozenset({"status", "note"}))


def _beside(record: Record, found: Standings) -> list[str]:
    standing = found.get(record.key) if record.status == "finished" else None
    if standing is None:
        return ["", "", ""]
    if standing.p is None:
        return [span(standing.interval), "winner", ""]
    behind = f"{standing.behind:+.4f}"
    if standing.behind_interval:
        behind += f" ({span(standing.behind_interval, sign='+')})"
    return [span(standing.interval), behind, f"{standing.p:.3f}"]


def span(interval: Interval, sign: str = "") -> str:
    """An interval as text."""
    return "" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"


def table(records: Sequence[Record], axes: Sequence[Axis], metric: str, found: Standings = NONE) -> str:
    """The trials as a Markdown table, best first."""
    return table_text(trials_table(records, axes, metric, found))


def table_csv(records: Sequence[Record], axes: Sequence[Axis], metric: str, found: Standings = NONE) -> str:
    """The trials as CSV, a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    beside = ["score_low", "score_high", "behind", "p_holm"]
    writer.writerow([*(axis.path for axis in axes), "metric", "score", *beside, "status", "seconds", "flops", "error"])
    for one in records:
        values = [to_text(one.changes[axis.path]) for axis in axes]
        score = "" if one.score is None else one.score
        standing = found.get(one.key) if one.status == "finished" else None
        low, high = (standing.interval if standing else None) or ("", "")
        behind, p = (standing.behind, "" if standing.p is None else standing.p) if standing else ("", "")
        flops = "" if one.flops is None else one.flops
        more = [one.status, round(one.seconds, 1), flops, one.error]
        writer.writerow([*values, metric, score, low, high, behind, p, *more])
    return text.getvalue()
