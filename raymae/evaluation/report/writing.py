"""Write an evaluation's report to a folder: `report.json`, `report.md`, `report.html` and figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from raymae.evaluation.png import png
from raymae.evaluation.report.class_figures import CELLS_SHOWN, class_figure, confusion_figure, reliability_figure
from raymae.evaluation.report.class_sections import classes_section, mistakes_section, ranking
from raymae.evaluation.report.document import Document, Picture, Sample, Section, document_text
from raymae.evaluation.report.figures import chosen_models, domain_figure, score_figure
from raymae.evaluation.report.page import page
from raymae.evaluation.report.result import Report, final
from raymae.evaluation.report.sections import score_tables
from raymae.evaluation.scores import DOMAINS, KINDS, UNKNOWN
from raymae.evaluation.verdict import chance
from raymae.evaluation.wording import model_title
from raymae.storage.folder import Folder

FILES = ("report.md", "report.html", "report.json")

Training = Sequence[tuple[Picture, bytes]]
"""Figures of the stages that trained, as PNGs."""

Drawings = Mapping[str, Sequence[tuple[Picture, Figure]]]
"""Figures by the name of the section that they belong to."""


def write_report(report: Report, folder: Folder, samples: Sequence[Sample] = (), training: Training = ()) -> list[str]:
    """Write the pages and figures of the result of `pipeline.evaluate.evaluate`; returns the names of all files.

    Args:
        report: the result, with its `verdict` and what it was `made` of.
        folder: where to.
        samples: mistakes to listen to (`mistakes.read_samples`), which are in report.html alone.
        training: figures of the stages.
    """
    drawn = drawings(report)
    pictures = {picture.file: png(figure) for found in drawn.values() for picture, figure in found}
    pictures |= {picture.file: content for picture, content in training}
    document = compose(report, drawn, samples, [picture for picture, _ in training])
    for name, content in pictures.items():
        folder.write_bytes(name, content)
    folder.write_bytes("report.md", document_text(document).encode())
    folder.write_bytes("report.html", page(document, pictures).encode())
    folder.write_json("report.json", dict(report))
    return [*FILES, *pictures]


def compose(
    report: Report, drawn: Drawings, samples: Sequence[Sample] = (), training: Sequence[Picture] = ()
) -> Document:
    """The document: the verdict, its origin, and the sections with their figures."""
    found = tables(report)
    sections = [
        with_figures(section, [picture for picture, _ in drawn.get(name, ())]) for name, section in found.items()
    ]
    if samples:
        text = f"{len(samples)} of the mistakes, the most confident ones; all are equally loud, which they were not."
        sections.append(Section("Mistakes to listen to", [text, *samples]))
    if training:
        sections.append(Section("Training", (), training))
    verdict = report["verdict"]
    return Document(
        title=f"Evaluation of {model_title(final(report)[0])}",
        decision=verdict["decision"],
        verdict=verdict["sentence"],
        notes=[*verdict["notes"], HOLM] if verdict["standings"] else verdict["notes"],
        facts=list(facts(report)),
        sections=sections,
    )


def with_figures(section: Section, pictures: Sequence[Picture]) -> Section:
    """A section with its figures: below it those of many classes, which have to be large, beside it all others."""
    large = [picture for picture in pictures if picture.large]
    beside = [picture for picture in pictures if not picture.large]
    return replace(section, blocks=[*section.blocks, *large], beside=beside)


HOLM = "Each p is corrected for the number of all comparisons of this evaluation by Holm's method."


def tables(report: Report) -> dict[str, Section]:
    """The sections by their names, without those that the data don't allow."""
    scores = score_tables(report)
    found = {
        **{name: section for name, section in scores.items() if name != "embeddings"},
        "classes": classes_section(report),
        "embeddings": scores["embeddings"],
        "mistakes": mistakes_section(report),
    }
    return {name: section for name, section in found.items() if section is not None}


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """What was evaluated, by which command, of what."""
    made = report["made"]
    yield "split", report["split"] + (f" ({report['note']})" if report["note"] else "")
    yield "run", f"{made['run']}, recipe {made['recipe']}"
    yield "date", made["date"].replace("T", " ").replace("+00:00", " UTC")
    yield "command", made["command"]
    for split, counts in made["clips"].items():
        yield f"clips of {split}", ", ".join(counted(counts))
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    if "git_commit" in made:
        versions += f", commit {made['git_commit'][:12]}" + (" with changes" if "git_dirty" in made else "")
    yield "versions", versions


def counted(counts: Mapping[str, Any]) -> Iterator[str]:
    """The counts of a split, as in "100, 76 labelled, 12 groups"."""
    yield f"{counts['clips']}"
    for name, one in COUNTS.items():
        if counts[name]:
            yield f"{counts[name]} {one if counts[name] == 1 else name}"


COUNTS = {"labelled": "labelled", "groups": "group", "devices": "device", "cities": "city", "hours": "hour"}
"""What is counted of a split, and the words for one."""


# Figures --------------------------------------------------------------------------------------------------------------


def drawings(report: Report) -> dict[str, list[tuple[Picture, Figure]]]:
    """All figures with their files and captions, by section."""
    metrics, kind = report["metrics"], KINDS[report["labels"]]
    _, found = final(report)
    levels = {split: chance(one) for split, one in found.items()}
    caption = f"{kind.TITLE} with 95 % intervals where there are any; dotted: guessing."
    drawn = {"scores": [(Picture("figures/scores.png", caption), score_figure(metrics, kind.HEADLINE, levels))]}
    drawn["classes"] = list(class_drawings(report))
    drawn["probabilities"] = list(reliability_drawings(report))
    for domain, plural in DOMAINS.items():
        if any(set(scores[plural]) != {UNKNOWN} for scores in found.values()):
            models = chosen_models(metrics, kind.HEADLINE)
            measure = "mAP" if kind.BY_DOMAIN == "mAP" else "Accuracy"
            who = f"The final model and the {len(models) - 1} best others. " if len(metrics) > len(models) else ""
            caption = (
                f"{measure} by {domain}, with 95 % intervals where there are any; * not in training. {who}".strip()
            )
            picture = Picture(f"figures/{kind.BY_DOMAIN.lower()}_by_{domain}.png", caption)
            drawn[domain] = [(picture, domain_figure(metrics, models, plural, kind.BY_DOMAIN))]
    return drawn


def class_drawings(report: Report) -> Iterator[tuple[Picture, Figure]]:
    """Confusion matrices by split, or of multi-label clips the average precisions."""
    _, found = final(report)
    if report["labels"] == "multi":
        picture = Picture("figures/average_precision.png", "Average precision by class.")
        yield picture, class_figure(found, ranking(found))
        return
    for number, (split, metrics) in enumerate(found.items()):
        caption = f"{split}: share of each true class (row) by predicted class. {confused(metrics, report['classes'])}"
        large = len(report["classes"]) > CELLS_SHOWN
        picture = Picture(split_file("confusion", number, split), caption, large=large)
        yield picture, confusion_figure(metrics, report["classes"])


def confused(metrics: Mapping[str, Any], classes: Sequence[str], most: int = 3) -> str:
    """The most frequent confusions of a split in words."""
    pairs = [
        (count, true, predicted)
        for true, row in zip(classes, metrics["confusion"], strict=True)
        for predicted, count in zip(classes, row, strict=True)
        if count and true != predicted
    ]
    worst = sorted(pairs, key=lambda pair: -pair[0])[:most]
    listed = ", ".join(f"{true} as {predicted} ({count})" for count, true, predicted in worst)
    return f"Most often mistaken: {listed}." if listed else "Nothing is mistaken."


def reliability_drawings(report: Report) -> Iterator[tuple[Picture, Figure]]:
    """Reliability diagrams by split, where a model gives probabilities."""
    metrics = report["metrics"]
    for number, split in enumerate(final(report)[1]):
        if any(found[split]["reliability"] for found in metrics.values()):
            caption = (
                f"{split}: share of right predictions by confidence, with the predictions of each point of the final "
                "model; points of fewer than 10 are joined."
            )
            yield Picture(split_file("reliability", number, split), caption), reliability_figure(metrics, split)


def split_file(kind: str, number: int, split: str) -> str:
    """The file of a split's figure; the number keeps splits apart whose names differ in odd characters alone."""
    return f"figures/{kind}_{number}_{re.sub(r'[^A-Za-z0-9_-]', '_', split)[:60]}.png"
