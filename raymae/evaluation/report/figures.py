"""Figures of an evaluation, drawn without a display; their titles name the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymae.evaluation.report.sections import model_title, ranking
from raymae.evaluation.scores import Evaluation

NAMES_SHOWN = 60
"""Most classes that are named in a figure."""
COLUMNS = 2
"""Panels side by side."""


def panels(count: int, width: float, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` side by side, each `width` x `height` inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def confusion_figure(found: Evaluation, class_names: Sequence[str], title: str) -> Figure:
    """Confusion matrices, a panel per split: clips by true and predicted class, shaded by share of the true class."""
    side = 2.4 + 0.4 * len(class_names)
    figure, axes = panels(len(found), side, side)
    figure.suptitle(title)
    for one, (split, metrics) in zip(axes, found.items(), strict=True):
        counts = np.array(metrics["confusion"])
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        one.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if shares[row, column] > 0.55 else "black"
                one.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=9)
        one.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right", rotation_mode="anchor")
        one.set_yticks(range(len(class_names)), class_names)
        one.set(xlabel="predicted", ylabel="true", title=f"{split}: macro accuracy {metrics['macro_accuracy']:.3f}")
    return figure


def domain_figure(metrics: Mapping[str, Evaluation], plural: str, key: str, title: str) -> Figure:
    """A score (`key`) by device or city (`plural`), a panel per split with a bar per model.

    Bars have intervals where there are any; unseen devices and cities are marked with a star.
    """
    splits = next(iter(metrics.values()))
    most = max(len(found[plural]) for found in splits.values())
    width = min(16.0, max(8.0, 1.2 + 0.17 * most * len(metrics)))
    figure, axes = panels(len(splits), width, 2.6, columns=1)
    figure.suptitle(title)
    bar = 0.8 / len(metrics)
    for one, split in zip(axes, splits, strict=True):
        for turn, (name, found) in enumerate(metrics.items()):
            scores = list(found[split][plural].values())
            places = np.arange(len(scores)) + (turn - (len(metrics) - 1) / 2) * bar
            one.bar(places, [score[key] for score in scores], bar, label=model_title(name))
            ends = [(place, score[key], score[f"{key}_ci"]) for place, score in zip(places, scores, strict=True)]
            for place, value, interval in ends:
                if interval:
                    one.errorbar(place, value, np.abs(np.array(interval)[:, None] - value), color="black", lw=0.8)
        names = [f"{name}*" if score["seen"] is False else name for name, score in splits[split][plural].items()]
        one.set_xticks(range(len(names)), names)
        if len(names) > 6:
            one.tick_params(axis="x", rotation=30)
        one.set(title=split, ylabel=key.replace("_", " "), ylim=(0, 1))
        one.grid(axis="y", alpha=0.3)
        one.set_axisbelow(True)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def reliability_figure(metrics: Mapping[str, Evaluation], title: str) -> Figure:
    """Reliability diagrams, a panel per split with a line per model that gives probabilities.

    They show the share of right predictions against confidence by bin and, below, the number of predictions per bin. A
    calibrated model is on the diagonal.
    """
    drawn = {name: found for name, found in metrics.items() if next(iter(found.values()))["reliability"]}
    splits = list(next(iter(drawn.values())))
    figure = Figure(figsize=(4.6 * len(splits), 5.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, len(splits), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, split in enumerate(splits):
        above, below = axes[:, column]
        above.plot([0, 1], [0, 1], color="grey", lw=1, ls="--")
        for name, found in drawn.items():
            bins = found[split]["reliability"]
            points = [(c, r) for c, r in zip(bins["confidence"], bins["right"], strict=True) if c is not None]
            error = f"{model_title(name)}: ECE {found[split]['ece']:.3f}"
            above.plot(*zip(*points, strict=True), marker="o", ms=4, label=error)
            edges = np.linspace(0, 1, len(bins["count"]) + 1)
            below.stairs(bins["count"], edges)
        above.set(title=split, ylim=(0, 1), xlim=(0, 1), ylabel="accuracy" if column == 0 else "")
        above.legend(fontsize="small", loc="lower right")  # reached only by an over-confident model
        below.set(xlabel="confidence", ylabel="predictions" if column == 0 else "")
        for one in (above, below):
            one.grid(alpha=0.3)
    return figure


def class_figure(found: Evaluation, title: str) -> Figure:
    """Average precision by class, the best on top, a panel per split."""
    ranked = ranking(found)
    named = len(ranked) <= NAMES_SHOWN
    figure = Figure(figsize=(3 + 3 * len(found), 1.2 + (0.22 * len(ranked) if named else 8)), layout="constrained")
    figure.suptitle(title)
    columns = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (split, metrics) in zip(columns, found.items(), strict=True):
        values = [_precision(metrics["by_class"][name]) for name in ranked]
        axes.barh(range(len(ranked)), values, height=0.8 if named else 1.0)
        axes.set(title=f"{split}: mAP {metrics['mAP']:.3f}", xlabel="average precision", xlim=(0, 1))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    columns[0].invert_yaxis()
    columns[0].set_yticks(range(len(ranked)) if named else [], ranked if named else [])
    return figure


def _precision(scores: Mapping[str, Any]) -> float:
    value = scores["average_precision"]
    return float("nan") if value is None else float(value)
