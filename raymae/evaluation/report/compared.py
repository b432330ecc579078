"""Compare two finished evaluations of the same clips (`jobs/evaluate.py --evaluate.compare`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymae.config import redact, to_dict
from raymae.evaluation.report.document import result_table
from raymae.evaluation.scores import KINDS, comparisons, corrected
from raymae.evaluation.wording import P_COLUMNS, difference_cells, holm_text, model_title, number
from raymae.storage.folder import Folder
from raymae.storage.found import what_is_there


def compare_evaluations(urls: Sequence[str]) -> dict[str, Any]:
    """Compare two evaluations, model by model, print the table and return its contents.

    Keys: job, first, second (their folders), split (its name, or both), differences: model → split → clips, first,
    second, value, interval, p_value, p_holm (corrected for their number), groups.

    Raises ValueError unless both are finished evaluations of the same clips, labels and classes.
    """
    folders = [evaluation_folder(url) for url in urls]
    reports = [folder.read_json("report.json") for folder in folders]
    for what in ("labels", "classes"):
        if reports[0][what] != reports[1][what]:
            raise ValueError(f"the evaluations have different {what}: {reports[0][what]} and {reports[1][what]}")
    models = [name for name in reports[0]["metrics"] if name in reports[1]["metrics"]]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in models:
        tables = [folder.read_table(f"predictions/{name}.parquet", checked=True) for folder in folders]
        found[name] = comparisons(tables[0], tables[1], reports[0]["classes"], reports[0]["labels"])
    differences = corrected(found)
    split = " / ".join(dict.fromkeys(report["split"] for report in reports))
    first, second = (redact(folder.url) for folder in folders)
    result = {"job": "evaluate", "first": first, "second": second, "split": split, "differences": differences}
    print(f"first:  {first}\nsecond: {second}\n\n{compared_text(result, reports[0]['labels'])}")
    return dict(to_dict(result))


def compared_text(result: dict[str, Any], labels: Any) -> str:
    """The differences as a Markdown table."""
    rows = [
        [model_title(name), split, number(found["first"]), number(found["second"]), *difference_cells(found)]
        for name, by_split in result["differences"].items()
        for split, found in by_split.items()
    ]
    header = ["model", "split", "first", "second", "first - second", *P_COLUMNS, "groups"]
    return (
        f"{KINDS[labels].TITLE}; p: two-sided p-value of a paired permutation test over groups. {holm_text(rows)}\n\n"
        f"{result_table(header, rows, frozenset({'split'}))}\n\nSplit: {result['split']}."
    )


def evaluation_folder(url: str) -> Folder:
    """The folder of a finished evaluation, given by itself or by its run folder; ValueError where there is none."""
    folder = Folder(url if "://" in url else str(Path(url).expanduser().resolve()))
    if folder.exists("result.json"):
        stages = folder.read_json("result.json").get("stages", {})
        folder = Folder(stages["evaluate"]["folder"]) if "evaluate" in stages else folder
    for name in ("done.json", "report.json"):
        if not folder.exists(name):
            raise ValueError(
                f"evaluate.compare: {redact(folder.url)} is not a finished evaluation: it has no {name}"
                f"{what_is_there(folder)}"
            )
    return folder
