"""Write an evaluation's report to a folder: `report.json`, `report.md`, `report.html` and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from raymae.evaluation.report.document import Picture, Section, markdown, page
from raymae.evaluation.report.figures import class_figure, confusion_figure, domain_figure, reliability_figure
from raymae.evaluation.report.sections import final, model_title, tables, under
from raymae.evaluation.scores import DOMAINS, KINDS, UNKNOWN
from raymae.storage.folder import Folder
from raymae.storage.png import png

FILES = ("report.md", "report.html", "report.json")


def write_report(report: Mapping[str, Any], folder: Folder) -> list[str]:
    """Write the pages and figures of the result of `pipeline.evaluate.evaluate`; returns the names of all files."""
    title = f"Evaluation of {model_title(final(report)[0])}, split {report['split']}"
    drawn = drawings(report)
    pictures = {picture.file: png(figure) for picture, figure in drawn}
    sections = tables(report)
    blocks: list[str | Picture] = []
    for picture, _ in drawn:
        blocks += [picture, *under(report)]
    sections.append(Section("Figures", blocks))
    for name, content in pictures.items():
        folder.write_bytes(name, content)
    folder.write_bytes("report.md", markdown(title, sections).encode())
    folder.write_bytes("report.html", page(title, sections, pictures).encode())
    folder.write_json("report.json", dict(report))
    return [*FILES, *pictures]


def drawings(report: Mapping[str, Any]) -> list[tuple[Picture, Figure]]:
    """All figures with their files and captions."""
    metrics, kind = report["metrics"], KINDS[report["labels"]]
    name, found = final(report)
    title, split = model_title(name), f" (split {report['split']})"
    if report["labels"] == "single":
        first = Picture("figures/confusion.png", f"{title}: clips by true and predicted class.")
        drawn = [(first, confusion_figure(found, report["classes"], title + split))]
    else:
        first = Picture("figures/average_precision.png", f"{title}: average precision by class.")
        drawn = [(first, class_figure(found, title + split))]
    if any(one["reliability"] for scores in metrics.values() for one in scores.values()):
        caption = "Reliability: accuracy against confidence; below, the number of predictions per bin."
        drawn.append((Picture("figures/reliability.png", caption), reliability_figure(metrics, f"Reliability{split}")))
    for domain, plural in DOMAINS.items():
        if any(set(scores[plural]) != {UNKNOWN} for scores in found.values()):
            file = f"figures/{kind.BY_DOMAIN.lower()}_by_{domain}.png"
            measure = "mAP" if kind.BY_DOMAIN == "mAP" else "Accuracy"
            caption = f"{measure} by {domain}, with 95 % intervals where there are any; * not in training."
            drawn.append(
                (
                    Picture(file, caption),
                    domain_figure(metrics, plural, kind.BY_DOMAIN, f"{measure} by {domain}{split}"),
                )
            )
    return drawn
