"""The report of a round of pseudo-labels: report.md, report.json and figures, from what `teacher.run_round` found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raymae.evaluation.report.document import Picture, Section, Table, markdown
from raymae.evaluation.report.figures import NAMES_SHOWN
from raymae.evaluation.report.sections import number
from raymae.storage.folder import Folder
from raymae.storage.png import png

Found = Mapping[str, Any]


def write_round(found: Found, folder: Folder) -> list[str]:
    """Write the page and figures of a round; the names of all files."""
    drawn = round_drawings(found)
    sections = [section for section in round_sections(found) if section is not None]
    if drawn:
        sections.append(Section("Figures", [picture for picture, _ in drawn]))
    for picture, figure in drawn:
        folder.write_bytes(picture.file, png(figure))
    folder.write_bytes("report.md", markdown(f"Pseudo-labels, round {found['round']}", sections).encode())
    folder.write_json("report.json", dict(found))
    return ["report.md", "report.json", *(picture.file for picture, _ in drawn)]


# Tables ---------------------------------------------------------------------------------------------------------------


def round_sections(found: Found) -> list[Section | None]:
    """What is always said, and what the data allow."""
    return [
        labels_section(found),
        classes_section(found),
        calibration_section(found),
        agreement_section(found),
        truth_section(found),
    ]


def labels_section(found: Found) -> Section:
    """How many clips get a label, from whom, by which rule, and why the others don't."""
    views = f", averaged over {found['views']} coloured views and more" if found["views"] else ""
    text = (
        f"{found['accepted']} of {found['unlabelled']} unlabelled training clips get a {found['labels']} label "
        f"(coverage {found['coverage']:.3f}) from the teacher {found['teacher']}{views}. Rule: {found['rule']}."
    )
    notes = []
    if not found["unlabelled"]:
        notes = ["There is no unlabelled clip: the student learns from the given labels alone."]
    elif not found["accepted"]:
        notes = ["No pseudo-label was accepted: the student learns from the given labels alone."]
    elif found["empty_classes"]:
        notes = [f"Warning: no accepted pseudo-label is of {', '.join(found['empty_classes'])}."]
    rows = [[reason, str(count)] for reason, count in found["refused"].items()]
    tables = [Table(["refused because", "clips"], rows)] if rows else []
    return Section("Labels", [text, *notes, *tables])


def classes_section(found: Found) -> Section:
    """Guessed and accepted clips of every class, with its threshold."""
    thresholds = found["thresholds"] or {}
    rows = [
        [name, str(guessed), str(found["accepted_by_class"][name]), number(thresholds.get(name))]
        for name, guessed in found["guessed_by_class"].items()
    ]
    return Section("Classes", [Table(["class", "guessed", "accepted", "threshold"], rows)])


def calibration_section(found: Found) -> Section:
    """The temperature, what it rests on, and what it brings."""
    one = found["calibration"]
    text = f"Temperature {one['temperature']:.3f}, calibrated on: {one['calibrated_on']}. {sentence(one['reason'])}"
    if one["calibrated_on"] == "nothing":
        return Section("Calibration", [text])
    clips = f"{one['clips']} labelled clips of {one['groups']} groups"
    names = {"mean_confidence": "mean confidence", "log_loss": "log loss", "ece": "calibration error (ECE)"}
    rows = [[title, number(one["before"].get(key)), number(one["after"].get(key))] for key, title in names.items()]
    if one["calibrated_on"] == "val":
        note = f"Of {clips} of split val; the accuracy there is {one['accuracy']:.3f}, which no temperature changes."
    else:
        note = (
            f"Mean confidence is that of the {found['unlabelled']} unlabelled clips. The accuracy it is made equal to, "
            f"{one['accuracy']:.3f}, is the probe's on {clips}: an estimate of the teacher's, whose own log loss and "
            "calibration error stay unknown, because it was trained on every clip that has a label."
        )
    return Section("Calibration", [text, Table(["", "before", "after"], rows), note])


def sentence(text: str) -> str:
    """A reason with its first letter large and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def agreement_section(found: Found) -> Section | None:
    """How far the guesses agree with those of the round before."""
    one = found["agreement"]
    if one is None:
        return None
    text = (
        f"Of {one['clips']} clips, a share of {number(one['equal'])} is guessed as in round {found['round'] - 1} "
        f"(Cohen's kappa {number(one['kappa'])}); of the {one['accepted_clips']} accepted in both rounds, "
        f"{number(one['accepted_equal'])}."
    )
    return Section("Agreement with the round before", [text])


def truth_section(found: Found) -> Section | None:
    """How often the guesses are right, where the truth is known."""
    one = found["truth"]
    if one is None:
        return None
    rows = [
        ["all", str(one["clips"]), number(one["accuracy"])],
        ["accepted", str(one["accepted_clips"]), number(one["accepted_accuracy"])],
    ]
    text = "On the clips whose true class pseudo_label.truth tells. It is used here alone; nothing learns from it."
    return Section("Against the truth", [text, Table(["guesses", "clips", "accuracy"], rows)])


# Figures --------------------------------------------------------------------------------------------------------------


def round_drawings(found: Found) -> list[tuple[Picture, Figure]]:
    """Every figure of a round with its place and caption."""
    title = f"Pseudo-labels, round {found['round']}"
    drawn = []
    if found["unlabelled"]:
        picture = Picture("figures/classes.png", "Clips by guessed class, and those of them that get the label.")
        drawn.append((picture, counts_figure(found, title)))
    if found["calibrated_on"] == "val":
        caption = "Reliability on the clips of split val that the teacher was calibrated on, before and after."
        figure = calibration_figure(found["calibration"], f"{title}: calibration on split val")
        drawn.append((Picture("figures/reliability.png", caption), figure))
    if found["truth"] is not None:
        caption = "Accuracy and coverage of the guesses that are at least so sure, where the truth is known."
        drawn.append((Picture("figures/accuracy.png", caption), accuracy_figure(found, f"{title}: against the truth")))
    return drawn


def counts_figure(found: Found, title: str) -> Figure:
    """Guessed and accepted clips of every class, a bar within a bar."""
    names, places = list(found["guessed_by_class"]), np.arange(len(found["guessed_by_class"]))
    named = len(names) <= NAMES_SHOWN
    figure = Figure(figsize=(7, 1.4 + (0.3 * len(names) if named else 8)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, list(found["guessed_by_class"].values()), 0.8, color="#c6d4e3", label="guessed")
    axes.barh(places, list(found["accepted_by_class"].values()), 0.5, color="#1f5a96", label="accepted")
    axes.set_yticks(places if named else [], names if named else [])
    axes.invert_yaxis()
    axes.set(xlabel="clips", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def calibration_figure(calibration: Mapping[str, Any], title: str) -> Figure:
    """Share that is right against confidence by bin, before and after; below, how many guesses lie in each bin."""
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="grey", lw=1, ls="--")
    labels = {"before": "temperature 1", "after": f"temperature {calibration['temperature']:.2f}"}
    for key, label in labels.items():
        one = calibration[key]
        bins = one["reliability"]
        points = [(c, r) for c, r in zip(bins["confidence"], bins["right"], strict=True) if c is not None]
        above.plot(*zip(*points, strict=True), marker="o", ms=4, label=f"{label}: ECE {one['ece']:.3f}")
        below.stairs(bins["count"], np.linspace(0, 1, len(bins["count"]) + 1))
    above.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share that is right")
    above.legend(fontsize="small", loc="upper left")
    below.set(xlabel="confidence", ylabel="guesses")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def accuracy_figure(found: Found, title: str) -> Figure:
    """Accuracy and coverage against the threshold of confidence, and those of what was accepted."""
    one = found["truth"]
    curve = one["curve"]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["threshold"], curve["accuracy"], label="accuracy of guesses this sure", color="#1f5a96")
    axes.plot(curve["threshold"], curve["coverage"], label="coverage: share of clips this sure", color="#d1701f")
    if one["accepted_accuracy"] is not None:
        level, share = one["accepted_accuracy"], one["accepted_clips"] / one["clips"]
        axes.axhline(level, color="#1f5a96", lw=1, ls=":", label=f"accuracy of the accepted {level:.3f}")
        axes.axhline(share, color="#d1701f", lw=1, ls=":", label=f"coverage of the accepted {share:.3f}")
    axes.set(xlabel="threshold of confidence", ylabel="share of the clips", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure
