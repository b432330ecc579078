"""Figures of the final model's classes: confusion matrices, average precision, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raymae.evaluation.report.figures import COLORS, MARKERS, NAMES_SHOWN, WIDTH, short, wrapped
from raymae.evaluation.scores import Evaluation
from raymae.evaluation.wording import model_title

CELLS_SHOWN = 20
"""Most classes of a confusion matrix whose cells hold their numbers."""
FEWEST = 10
"""Fewest predictions of a point of a reliability diagram; bins with fewer are joined with the next."""


def confusion_figure(metrics: Mapping[str, Any], class_names: Sequence[str]) -> Figure:
    """The confusion matrix of a split: cells are shaded by their share of the row, the true class.

    Up to `CELLS_SHOWN` classes, a cell holds its share in per cent and below it its clips.
    """
    counts = np.array(metrics["confusion"])
    number = len(class_names)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = min(14.0, 2.2 + 0.52 * number if number <= CELLS_SHOWN else 2.6 + 0.17 * number)
    names = [short(name) for name in class_names]
    margin = 0.07 * max(map(len, names)) if number <= NAMES_SHOWN else 0.0
    figure = Figure(figsize=(max(3.6, side) + margin, max(3.4, side) + 0.7 * margin), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts if number <= CELLS_SHOWN else np.zeros((0, 0))):
        if count:
            color = "white" if shares[row, column] > 0.55 else "black"
            text = f"{shares[row, column]:.0%}\n{count}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8, linespacing=1.05)
    if number <= NAMES_SHOWN:
        size = 9 if number <= CELLS_SHOWN else 7
        labels = [
            f"{name} ({total})" if total else f"{name} (none)"
            for name, total in zip(names, counts.sum(axis=1), strict=True)
        ]
        axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(number), labels, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true (clips)")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.7, pad=0.02)
    return figure


def class_figure(found: Evaluation, ranked: Sequence[str]) -> Figure:
    """Average precision by class, the best on top, with a marker per split; of many classes a curve per split."""
    named = len(ranked) <= NAMES_SHOWN
    figure = Figure(figsize=(WIDTH, 1.4 + (0.24 * len(ranked) if named else 3.4)), layout="constrained")
    axes = figure.subplots()
    for number, (split, metrics) in enumerate(found.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        values = np.array([precision(metrics["by_class"][name]) for name in ranked])
        label = f"{split}: mAP {metrics['mAP']:.3f}"
        if named:
            axes.plot(values, range(len(ranked)), marker=marker, color=color, ls="none", ms=5, label=label)
        else:
            axes.plot(range(1, len(ranked) + 1), -np.sort(-values), color=color, label=label)
    if named:
        axes.set_yticks(range(len(ranked)), [short(name) for name in ranked], fontsize=9)
        axes.set(xlabel="average precision", xlim=(0, 1.02), ylim=(len(ranked) - 0.5, -0.5))
    else:
        axes.set(ylabel="average precision", ylim=(0, 1.02), xlabel="classes, the best of each split first")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


def precision(scores: Mapping[str, Any]) -> float:
    """The average precision of a class; NaN without a clip."""
    value = scores["average_precision"]
    return float("nan") if value is None else float(value)


def joined_bins(table: Mapping[str, Sequence[float | None]]) -> list[tuple[float, float, int]]:
    """Confidence, share that is right and count of the bins of `Reliability.table`, each of at least `FEWEST` guesses.

    A smaller bin is joined with the next, the last ones with the one before.
    """
    found: list[list[float]] = []
    full = True
    for count, confidence, right in zip(table["count"], table["confidence"], table["right"], strict=True):
        if not count or confidence is None or right is None:
            continue
        if full:
            found.append([0.0, 0.0, 0.0])
        for place, value in enumerate((confidence, right, 1.0)):
            found[-1][place] += value * count
        full = found[-1][2] >= FEWEST
    if len(found) > 1 and not full:
        last = found.pop()
        found[-1] = [one + other for one, other in zip(found[-1], last, strict=True)]
    return [(confidence / count, right / count, round(count)) for confidence, right, count in found]


def reliability_figure(metrics: Mapping[str, Evaluation], split: str) -> Figure:
    """The reliability diagram of a split: a line per model that gives probabilities, and below its counts by bin.

    It shows the share of right predictions against confidence; a calibrated model is on the diagonal. Of more models
    than there are colors the last ones are drawn.
    """
    drawn = {name: found[split] for name, found in reversed(list(metrics.items())) if found[split]["reliability"]}
    figure = Figure(figsize=(WIDTH * 0.8, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="grey", lw=1, ls="--")
    for (name, found), color in zip(drawn.items(), COLORS, strict=False):
        bins = found["reliability"]
        points, edges = joined_bins(bins), np.linspace(0, 1, len(bins["count"]) + 1)
        label = f"{wrapped(model_title(name), 34)}: ECE {found['ece']:.3f}"
        above.plot(*[*zip(*points, strict=True)][:2], marker="o", ms=4, color=color, label=label)
        below.stairs(bins["count"], edges, color=color)
        if color == COLORS[0]:  # the final model's
            below.stairs(bins["count"], edges, color=color, fill=True, alpha=0.35)
            for x, y, count in points:
                text, place = compact(count), {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
                above.annotate(text, (x, y), fontsize=7, color=color, **place)
    above.set(ylim=(-0.03, 1.08), xlim=(0, 1), ylabel="share that is right")
    below.set(xlabel="confidence", ylabel="predictions")
    if max(max(found["reliability"]["count"]) for found in drawn.values()) > 1000:
        below.set_yscale("symlog", linthresh=10)
        below.yaxis.set_major_formatter(lambda value, _: compact(round(value)))
    for one in (above, below):
        one.grid(alpha=0.3)
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", fontsize="small")
    return figure


def compact(count: int) -> str:
    """A count in few characters: 950, 8.3k, 83k."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"
