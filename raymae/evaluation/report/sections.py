"""The tables of an evaluation's report, from the result of `raymae.pipeline.evaluate.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from raymae.config.stages import STAGES, turn_of
from raymae.evaluation.bootstrap import MIN_GROUPS
from raymae.evaluation.report.document import Section, Table
from raymae.evaluation.scores import DOMAINS, KINDS, MISTAKES, UNKNOWN, Evaluation

Report = Mapping[str, Any]
Block = str | Table

MODEL_TITLES = {
    "svm": "SVM on log-mel statistics",
    "svm_band_mean": "SVM, band-mean subtraction",
    "svm_eq": "SVM, random EQ",
    "svm_robust": "SVM, random EQ + band-mean subtraction",
    "svm_self_trained": "SVM, self-trained",
    "finetune_scratch": "encoder from scratch",
    "finetune_supervised": "supervised transfer",
    "finetune_pool": "MAE on pool alone, fine-tuned",
    "finetune_pool_train": "MAE on pool + train, fine-tuned",
    **{name: stage.title for name, stage in STAGES.items() if stage.title},
}
"""The titles of the SVMs, of the ablations, and of the stages that train a classifier."""
CLASSES_SHOWN = 5
"""Most classes that a note names."""
ROWS_SHOWN = 15
"""Best and worst classes in the multi-label table of classes; up to twice as many are all shown."""


def model_title(name: str) -> str:
    """The title of a model in tables and figures."""
    stage, turn = turn_of(name)
    return MODEL_TITLES.get(stage, stage) + (f", round {turn}" if turn > 1 else "")


def number(value: float | None) -> str:
    """A score, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def score(values: Mapping[str, Any] | None, key: str) -> str:
    """A score with its interval, where there is one."""
    if values is None or values.get(key) is None:
        return "-"
    interval = values.get(f"{key}_ci")
    return number(values[key]) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def final(report: Report) -> tuple[str, Evaluation]:
    """The final model of the run, which is the last one, and its scores by split."""
    return list(report["metrics"].items())[-1]


def under(report: Report) -> list[str]:
    """The paragraphs below every table: the name of the split, and the note if there is one."""
    return [f"Split: {report['split']}." + (f" {report['note']}." if report["note"] else "")]


def tables(report: Report) -> list[Section]:
    """The sections of a report, without those that the data don't allow."""
    found = [scores_section(report), probabilities_section(report), differences_section(report), seen_section(report)]
    found += [domain_section(report, domain) for domain in DOMAINS]
    found += [classes_section(report), embeddings_section(report), mistakes_section(report)]
    return [section for section in found if section is not None]


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
    meaning = f"{kind.MEANING}; in brackets the 95 % bootstrap interval over groups."
    return Section(f"{kind.TITLE} by split", [meaning, Table(header, rows), *under(report), *notes])


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
    return f"{split} has no clip of {', '.join(classes)}: its score is the mean over the other classes."


def probabilities_section(report: Report) -> Section:
    """Accuracy, log loss and calibration error by split and model."""
    keys = [key for key in ("accuracy", "log_loss", "ece") if key in next(iter(final(report)[1].values()))]
    rows = [
        [split, model_title(name), *(score(found[split], key) for key in keys)]
        for split in final(report)[1]
        for name, found in report["metrics"].items()
    ]
    text = "Log loss in nats; ECE, the expected calibration error, is the mean gap between confidence and accuracy."
    if any(row[-1] == "-" for row in rows):
        text += " The SVMs don't give probabilities."
    header = ["split", "model", *(key.replace("_", " ").replace("ece", "ECE") for key in keys)]
    title = "Accuracy, log loss and calibration" if "accuracy" in keys else "Log loss and calibration"
    return Section(title, [text, Table(header, rows, frozenset({"model"})), *under(report)])


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
    return Section(f"{title} against the others", [text, Table(header, rows, frozenset({"against"})), *under(report)])


P_COLUMNS = ("p", "Holm")
"""Headings of a difference's p-value and the corrected one."""


def holm_text(rows: Sequence[object]) -> str:
    """What the second of `P_COLUMNS` holds in a table of some rows."""
    return f"“Holm” is p corrected for the number of rows, {len(rows)}, by Holm's method: judge by it."


def difference_cells(found: Mapping[str, Any]) -> list[str]:
    """Cells of a difference: value with its interval, p-value, the corrected one, and number of groups."""
    interval = found["interval"]
    ends = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    p_values = (f"{found[name]:.4f}" for name in ("p_value", "p_holm"))
    return [f"{found['value']:+.3f}{ends}", *p_values, str(found["groups"])]


def seen_section(report: Report) -> Section | None:
    """The headline score on seen and unseen devices and cities."""
    kind = KINDS[report["labels"]]
    lines: list[list[str]] = []
    for split, first in final(report)[1].items():
        for part in (f"{seen}_{plural}" for plural in DOMAINS.values() for seen in ("seen", "unseen")):
            if first[part] is not None:
                scores = (score(found[split][part], kind.HEADLINE) for found in report["metrics"].values())
                lines.append([split, part.replace("_", " "), str(first[part]["clips"]), *scores])
    if not lines:
        return None
    notes = [note for domain in DOMAINS if (note := _pool_note(report, domain))]
    text = f"{kind.TITLE}. Unseen devices and cities have no clip in split train, labelled or unlabelled."
    header = ["split", "domains", "clips", *map(model_title, report["metrics"])]
    return Section(
        "Seen and unseen devices and cities",
        [text, Table(header, lines, frozenset({"domains"})), *under(report), *notes],
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
    lines = []
    for split, found in final(report)[1].items():
        if set(found[plural]) == {UNKNOWN}:
            continue
        for name, first in found[plural].items():
            seen = {True: "seen", False: "unseen", None: "-"}[first["seen"]]
            others = list(report["metrics"].values())
            cells = [number(other[split][plural][name][kind.BY_DOMAIN]) for other in others[:-1]]
            cells.append(score(first, kind.BY_DOMAIN))
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
    table = Table(header, lines, frozenset({domain, "in training"}))
    return Section(f"{measure} by {domain}", [*filter(None, [text]), table, *under(report)])


def classes_section(report: Report) -> Section:
    """Scores of the final model by class."""
    name, found = final(report)
    if report["labels"] == "multi":
        return Section(f"Average precision by class: {model_title(name)}", [*precision_tables(found), *under(report)])
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
    return Section(f"By class: {model_title(name)}", [text, table, *under(report)])


def precision_tables(found: Evaluation) -> Iterator[Block]:
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
    return Section("Probes of the embeddings", [text, Table(header, rows), *under(report)])


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
        [text, Table(header, rows, frozenset({"file", "true", "predicted", "device", "city"})), *under(report)],
    )
