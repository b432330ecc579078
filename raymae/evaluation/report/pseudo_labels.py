"""The report of a round of pseudo-labels: report.md, report.json and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raymae.evaluation.png import png
from raymae.evaluation.report.document import Picture, Section, Table, markdown
from raymae.evaluation.report.figures import NAMES_SHOWN
from raymae.evaluation.wording import number
from raymae.storage.folder import Folder

Found = Mapping[str, Any]
"""The result of a round, as returned by `raymae.pipeline.pseudo_label.run_round`."""


def write_round(found: Found, folder: Folder) -> list[str]:
    """Write the page and figures of a round; returns the names of all files."""
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
    """The sections of a round; agreement and truth are None where unknown."""
    return [
        labels_section(found),
        classes_section(found),
        calibration_section(found),
        agreement_section(found),
        truth_section(found),
    ]


def labels_section(found: Found) -> Section:
    """Number of clips that get a label, the teacher, the rule, and the reasons of refusals."""
    views = f", averaged over {found['views']} views with random EQ and more" if found["views"] else ""
    text = (
        f"{found['accepted']} of {found['unlabelled']} unlabelled training clips get a {found['labels']} label "
        f"(coverage {found['coverage']:.3f}) from the teacher {found['teacher']}{views}. Rule: {found['rule']}."
    )
    notes = []
    if not found["unlabelled"]:
        notes = ["There is no unlabelled clip: the student is trained on the given labels only."]
    elif not found["accepted"]:
        notes = ["No pseudo-label was accepted: the student is trained on the given labels only."]
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
    """The temperature, what it was fitted to, and its effect."""
    one = found["calibration"]
    text = f"Temperature {one['temperature']:.3f}, calibrated on: {one['calibrated_on']}. {sentence(one['reason'])}"
    if one["calibrated_on"] == "nothing":
        return Section("Calibration", [text])
    clips = f"{one['clips']} labelled clips of {one['groups']} groups"
    names = {"mean_confidence": "mean confidence", "log_loss": "log loss", "ece": "calibration error (ECE)"}
    rows = [[title, number(one["before"].get(key)), number(one["after"].get(key))] for key, title in names.items()]
    if one["calibrated_on"] == "val":
        note = f"On {clips} of split val; the accuracy there, {one['accuracy']:.3f}, doesn't depend on the temperature."
    else:
        note = (
            f"Mean confidence is over the {found['unlabelled']} unlabelled clips. It is set to {one['accuracy']:.3f}, "
            f"the probe's accuracy on {clips}, as an estimate of the teacher's accuracy. The teacher's log loss and "
            "calibration error are unknown, because it was trained on every clip that has a label."
        )
    return Section("Calibration", [text, Table(["", "before", "after"], rows), note])


def sentence(text: str) -> str:
    """A reason as a sentence: with a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def agreement_section(found: Found) -> Section | None:
    """Agreement of the guesses with those of the previous round."""
    one = found["agreement"]
    if one is None:
        return None
    text = (
        f"Of {one['clips']} clips, a share of {number(one['equal'])} has the same guess as in round "
        f"{found['round'] - 1} (Cohen's kappa {number(one['kappa'])}); of the {one['accepted_clips']} accepted in both "
        f"rounds, {number(one['accepted_equal'])}."
    )
    return Section("Agreement with the previous round", [text])


def truth_section(found: Found) -> Section | None:
    """Accuracy of the guesses on clips whose true class is known."""
    one = found["truth"]
    if one is None:
        return None
    rows = [
        ["all", str(one["clips"]), number(one["accuracy"])],
        ["accepted", str(one["accepted_clips"]), number(one["accepted_accuracy"])],
    ]
    text = "On the clips whose true class is in pseudo_label.truth, which is used here only and never for training."
    return Section("Accuracy against true labels", [text, Table(["guesses", "clips", "accuracy"], rows)])


# Figures --------------------------------------------------------------------------------------------------------------


def round_drawings(found: Found) -> list[tuple[Picture, Figure]]:
    """All figures of a round with their files and captions."""
    title = f"Pseudo-labels, round {found['round']}"
    drawn = []
    if found["unlabelled"]:
        picture = Picture("figures/classes.png", "Clips by guessed class, and those whose label is accepted.")
        drawn.append((picture, counts_figure(found, title)))
    if found["calibrated_on"] == "val":
        caption = "Reliability before and after calibration, on the clips of split val that were used for it."
        figure = calibration_figure(found["calibration"], f"{title}: calibration on split val")
        drawn.append((Picture("figures/reliability.png", caption), figure))
    if found["truth"] is not None:
        caption = "Accuracy and coverage of the guesses above a confidence threshold, where the true class is known."
        drawn.append(
            (Picture("figures/accuracy.png", caption), accuracy_figure(found, f"{title}: against true labels"))
        )
    return drawn


def counts_figure(found: Found, title: str) -> Figure:
    """Bars of guessed and accepted clips by class."""
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
    """Reliability diagrams before and after calibration, with the number of guesses per bin below."""
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
    above.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="accuracy")
    above.legend(fontsize="small", loc="upper left")
    below.set(xlabel="confidence", ylabel="guesses")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def accuracy_figure(found: Found, title: str) -> Figure:
    """Accuracy and coverage against a confidence threshold, and those of the accepted guesses."""
    one = found["truth"]
    curve = one["curve"]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["threshold"], curve["accuracy"], label="accuracy above the threshold", color="#1f5a96")
    axes.plot(
        curve["threshold"], curve["coverage"], label="coverage: share of clips above the threshold", color="#d1701f"
    )
    if one["accepted_accuracy"] is not None:
        level, share = one["accepted_accuracy"], one["accepted_clips"] / one["clips"]
        axes.axhline(level, color="#1f5a96", lw=1, ls=":", label=f"accuracy of accepted labels {level:.3f}")
        axes.axhline(share, color="#d1701f", lw=1, ls=":", label=f"coverage of accepted labels {share:.3f}")
    axes.set(xlabel="confidence threshold", ylabel="share of the clips", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure
