"""The tables of the final model's classes and mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raymae.evaluation.report.document import Section, Table
from raymae.evaluation.report.result import Report, final
from raymae.evaluation.scores import DOMAINS, MISTAKES, Evaluation
from raymae.evaluation.wording import model_title, number, score

ROWS_SHOWN = 15
"""Best and worst classes in the multi-label table of classes; up to twice as many are all shown."""


def classes_section(report: Report) -> Section:
    """Scores of the final model by class."""
    name, found = final(report)
    if report["labels"] == "multi":
        return Section(f"Average precision by class: {model_title(name)}", [*precision_tables(found)])
    header = ["split", "class", "clips", "groups", "recall", "precision", "F1"]
    rows = [
        [
            split,
            label,
            str(one["clips"]),
            str(one["groups"]),
            *(score(one, key) for key in ("recall", "precision", "f1")),
        ]
        for split, metrics in found.items()
        for label, one in metrics["by_class"].items()
    ]
    text = "An interval of zero width means that all groups of the class have the same score, not that it is certain."
    table = Table(header, rows, frozenset({"class"}))
    return Section(f"By class: {model_title(name)}", [text, table])


def precision_tables(found: Evaluation) -> Iterator[str | Table]:
    """Average precision and clips by class and split, best on the last split first; of many classes, best and worst."""
    ranked = ranking(found)
    listed = ranked if len(ranked) <= 2 * ROWS_SHOWN else [*ranked[:ROWS_SHOWN], *ranked[-ROWS_SHOWN:]]
    if listed is not ranked:
        yield f"The {ROWS_SHOWN} best and {ROWS_SHOWN} worst of {len(ranked)} classes; report.json has all of them."
    rows = [[name, *(_precision_cell(metrics["by_class"][name]) for metrics in found.values())] for name in listed]
    yield Table(["class", *(f"{split} (clips)" for split in found)], rows)


def _precision_cell(one: Mapping[str, Any]) -> str:
    return "-" if one["average_precision"] is None else f"{score(one, 'average_precision')} ({one['clips']})"


def ranking(found: Evaluation) -> list[str]:
    """The classes by average precision on the last split, best first; those without a clip there last."""
    *_, last = found.values()
    by_class = last["by_class"]
    return sorted(
        by_class,
        key=lambda name: (by_class[name]["average_precision"] is None, -(by_class[name]["average_precision"] or 0)),
    )


def mistakes_section(report: Report) -> Section | None:
    """The final model's most confident mistakes."""
    listed = [one for found in report["mistakes"].values() for one in found]
    known = [domain for domain in DOMAINS if any(one[domain] for one in listed)]
    rows = [
        [
            split,
            one["path"],
            one["true"],
            one["predicted"],
            number(one["confidence"]),
            f"{one['group_wrong']} of {one['group_clips']}",
            *(one[domain] or "-" for domain in known),
        ]
        for split, found in report["mistakes"].items()
        for one in found
    ]
    if not rows:
        return None
    text = f"The most confident mistake of each group, at most {MISTAKES} per split, and the wrong clips of the group."
    header = ["split", "file", "true", "predicted", "confidence", "of its group", *known]
    return Section(
        f"Most confident mistakes: {model_title(final(report)[0])}",
        [text, Table(header, rows, frozenset({"file", "true", "predicted", "device", "city"}))],
    )
