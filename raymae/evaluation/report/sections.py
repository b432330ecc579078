"""The tables of scores of an evaluation's report, from the result of `raymae.pipeline.evaluate.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from raymae.evaluation.bootstrap import MIN_GROUPS
from raymae.evaluation.report.document import Section, Table
from raymae.evaluation.report.result import Report, final
from raymae.evaluation.scores import DOMAINS, KINDS, UNKNOWN
from raymae.evaluation.wording import P_COLUMNS, difference_cells, holm_text, model_title, number, score

CLASSES_SHOWN = 5
"""Most classes that a note names."""


def score_tables(report: Report) -> dict[str, Section | None]:
    """The sections of scores by model, by their names; None where the data don't allow one."""
    return {
        "scores": scores_section(report),
        "differences": differences_section(report),
        "probabilities": probabilities_section(report),
        "seen": seen_section(report),
        **{domain: domain_section(report, domain) for domain in DOMAINS},
        "embeddings": embeddings_section(report),
    }


def best_of(values: Sequence[float | None], *, lowest: bool = False) -> set[int]:
    """The places of the best of several scores; none of fewer than two."""
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return set()
    best = min(there) if lowest else max(there)
    return {place for place, value in enumerate(values) if value == best}


def scores_section(report: Report) -> Section:
    """The headline score by model and split."""
    kind, metrics, splits = KINDS[report["labels"]], report["metrics"], final(report)[1]
    rows = [
        [
            model_title(name),
            *(score(found[split], kind.HEADLINE) for split in splits),
            f"{report['train_seconds'][name]:.1f} s",
        ]
        for name, found in metrics.items()
    ]
    header = ["model", *(f"{name} ({found['clips']} clips)" for name, found in splits.items()), "training"]
    bold = {
        (row, column)
        for column, split in enumerate(splits, 1)
        for row in best_of([found[split][kind.HEADLINE] for found in metrics.values()])
    }
    notes = [_missing(name, found["missing_classes"]) for name, found in splits.items() if found["missing_classes"]]
    if report["val_chose"] and "val" in splits:
        chosen = ", ".join(map(model_title, report["val_chose"]))
        notes.append(f"The weights of {chosen} were selected on val: their val scores are optimistic.")
    if report["quarantined"]:
        lost = ", ".join(f"{count} of {split}" for split, count in report["quarantined"].items())
        notes.append(f"Labelled clips that couldn't be read and are not scored: {lost}.")
    if report["silent"]:
        lost = ", ".join(f"{count} of {split}" for split, count in report["silent"].items())
        notes.append(f"Labelled clips without any sound, which are not scored: {lost}.")
    if report["clips"]:
        notes.append(f"Recordings are scored by the mean over their clips; of single clips {clip_line(report, kind)}.")
    few = {split: classes for split, found in splits.items() if (classes := _few_groups(found))}
    notes += [f"No interval of {split}: {', '.join(classes)}." for split, classes in few.items()]
    meaning = f"{kind.MEANING}; in brackets the 95 % bootstrap interval over groups; the best of each split in bold."
    return Section(f"{kind.TITLE} by split", [meaning, Table(header, rows, bold=frozenset(bold)), *notes])


def clip_line(report: Mapping[str, Any], kind: ModuleType) -> str:
    """The final model's scores of the clips that recordings were cut to, as in "test 0.71 (360 clips)"."""
    *_, final = report["clips"].values()
    return ", ".join(f"{split} {found[kind.HEADLINE]:.3f} ({found['clips']} clips)" for split, found in final.items())


def _few_groups(found: Mapping[str, Any]) -> list[str]:
    """The classes of a split with too few groups for an interval, as in "chainsaw has 4 groups, fewer than 5"."""
    few = [(name, one["groups"]) for name, one in found["by_class"].items() if 0 < one["groups"] < MIN_GROUPS]
    shown = [
        f"{name} has {groups} group{'s' * (groups > 1)}, fewer than {MIN_GROUPS}"
        for name, groups in few[:CLASSES_SHOWN]
    ]
    return shown + ([f"and {len(few) - CLASSES_SHOWN} more classes"] if len(few) > CLASSES_SHOWN else [])


def _missing(split: str, classes: Sequence[str]) -> str:
    more = f" and {len(classes) - CLASSES_SHOWN} more classes" if len(classes) > CLASSES_SHOWN else ""
    listed = ", ".join(classes[:CLASSES_SHOWN])
    return f"{split} has no clip of {listed}{more}: its score is the mean over the other classes."


def probabilities_section(report: Report) -> Section:
    """Accuracy, log loss and calibration error by split and model."""
    keys = [key for key in ("accuracy", "log_loss", "ece") if key in next(iter(final(report)[1].values()))]
    rows = [
        [split, model_title(name), *(score(found[split], key) for key in keys)]
        for split in final(report)[1]
        for name, found in report["metrics"].items()
    ]
    models, bold = len(report["metrics"]), set()
    for start, split in zip(range(0, len(rows), models), final(report)[1], strict=True):
        for column, key in enumerate(keys, 2):
            values = [found[split][key] for found in report["metrics"].values()]
            bold |= {(start + place, column) for place in best_of(values, lowest=key != "accuracy")}
    text = "Log loss in nats; ECE, the expected calibration error, is the mean gap between confidence and accuracy."
    if any(row[-1] == "-" for row in rows):
        text += " The SVMs don't give probabilities."
    header = ["split", "model", *(key.replace("_", " ").replace("ece", "ECE") for key in keys)]
    title = "Accuracy, log loss and calibration" if "accuracy" in keys else "Log loss and calibration"
    return Section(title, [text, Table(header, rows, frozenset({"model"}), frozenset(bold))])


def differences_section(report: Report) -> Section | None:
    """Differences between the final model and each other model."""
    rows = [
        [split, model_title(other), *difference_cells(found)]
        for other, by_split in report["comparisons"].items()
        for split, found in by_split.items()
    ]
    if not rows:
        return None
    title = model_title(final(report)[0])
    text = (
        f"{KINDS[report['labels']].TITLE} of “{title}” minus that of the model in the row, on the same clips. p is the "
        "two-sided p-value of a paired permutation test in which the two models exchange whole groups. "
        f"{holm_text(rows)}"
    )
    header = ["split", "against", "difference", *P_COLUMNS, "groups"]
    return Section(f"{title} against the others", [text, Table(header, rows, frozenset({"against"}))])


def seen_section(report: Report) -> Section | None:
    """The headline score on seen and unseen devices and cities."""
    kind = KINDS[report["labels"]]
    lines: list[list[str]] = []
    bold = set()
    for split, first in final(report)[1].items():
        for part in (f"{seen}_{plural}" for plural in DOMAINS.values() for seen in ("seen", "unseen")):
            if first[part] is not None:
                found = [one[split][part] for one in report["metrics"].values()]
                bold |= {(len(lines), 4 + place) for place in best_of([one[kind.HEADLINE] for one in found])}
                counts = [str(first[part][name]) for name in ("clips", "groups")]
                lines.append([split, part.replace("_", " "), *counts, *(score(one, kind.HEADLINE) for one in found)])
    if not lines:
        return None
    notes = [note for domain in DOMAINS if (note := _pool_note(report, domain))]
    text = f"{kind.TITLE}. Unseen devices and cities have no clip in split train, labelled or unlabelled."
    header = ["split", "domains", "clips", "groups", *map(model_title, report["metrics"])]
    return Section(
        "Seen and unseen devices and cities",
        [text, Table(header, lines, frozenset({"domains"}), frozenset(bold)), *notes],
    )


def _pool_note(report: Report, domain: str) -> str | None:
    """A note on unseen devices or cities that are in the pool."""
    plural, pool = DOMAINS[domain], report["trained_on"][domain]["pool"]
    unseen = {
        name for found in final(report)[1].values() for name, one in found[plural].items() if one["seen"] is False
    }
    in_pool = sorted(unseen.intersection(pool))
    return f"Of the unseen {plural}, split pool has {', '.join(in_pool)}: pre-training used them." if in_pool else None


def domain_section(report: Report, domain: str) -> Section | None:
    """Scores by device or city; None where none is known."""
    kind, plural = KINDS[report["labels"]], DOMAINS[domain]
    lines: list[list[str]] = []
    bold = set()
    for split, found in final(report)[1].items():
        if set(found[plural]) == {UNKNOWN}:
            continue
        for name, first in found[plural].items():
            seen = {True: "seen", False: "unseen", None: "-"}[first["seen"]]
            scores = [one[split][plural][name] for one in report["metrics"].values()]
            bold |= {(len(lines), 5 + place) for place in best_of([one[kind.BY_DOMAIN] for one in scores])}
            cells = [score(one, kind.BY_DOMAIN) for one in scores]
            lines.append([split, name, seen, str(first["clips"]), str(first["groups"]), *cells])
    if not lines:
        return None
    header = ["split", domain, "in training", "clips", "groups", *map(model_title, report["metrics"])]
    measure = "mAP" if kind.BY_DOMAIN == "mAP" else "Accuracy"
    text = (
        f"Over the classes that occur there, so {plural} with different classes are not comparable."
        if measure == "mAP"
        else ""
    )
    table = Table(header, lines, frozenset({domain, "in training"}), frozenset(bold))
    return Section(f"{measure} by {domain}", [*filter(None, [text]), table])


def embeddings_section(report: Report) -> Section | None:
    """Accuracy of probes for device, city and scene on the frozen embeddings of each stage."""
    found = report["embeddings"]
    if not found or not found["targets"]:
        return None
    targets = found["targets"]
    rows = [[title, *(number(scores.get(name)) for name in targets)] for title, scores in found["scores"].items()]
    rows.append(["chance", *(number(target["chance"]) for target in targets.values())])
    rows.append(["clips / groups", *(f"{target['clips']} / {target['groups']}" for target in targets.values())])
    header = ["embeddings", *(f"{name} ({len(target['names'])})" for name, target in targets.items())]
    text = (
        "Macro accuracy of a linear probe on the frozen embeddings of held-out clips, cross-validated by group: it is "
        "trained on no clip of a group that it is scored on. Embeddings that keep the scene and discard device and "
        "city score high on the scene and near chance on the others; in brackets the number of names, which are those "
        f"with enough groups. Embeddings are taken after block {found['layer']}; these probes select nothing."
    )
    return Section("Probes of the embeddings", [text, Table(header, rows)])
