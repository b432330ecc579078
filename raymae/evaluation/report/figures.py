"""Figures of scores, drawn without a display: by model and split, and by device or city."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymae.evaluation.scores import Evaluation
from raymae.evaluation.wording import model_title

NAMES_SHOWN = 60
"""Most classes, devices or cities that a figure names."""
WIDTH = 6.4
"""Inches of a figure that fits a phone as well as half a wide window."""
COLORS = ("#0b57a4", "#d1701f", "#2a8a3e", "#8a4bb0", "#6b6b6b")
MARKERS = "osD^v"
MODELS_SHOWN = 3
"""Most models in a figure of devices or cities: the final one, and the best of the others."""


def short(name: str, width: int = 26) -> str:
    """A name cut in its middle to fit a figure."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def wrapped(name: str, width: int = 26) -> str:
    """A title in lines."""
    return "\n".join(textwrap.wrap(name, width)) or name


def cut_to(axes: Axes, low: float) -> None:
    """Let scores begin at the tenth below the lowest, and end at 1."""
    axes.set_xlim(max(0.0, np.floor(10 * low - 0.2) / 10), 1.0)


def point(axes: Axes, place: float, scores: Mapping[str, Any], key: str, color: str, marker: str) -> float:
    """Draw a score with its interval at a height; returns its lower end."""
    value, interval = scores[key], scores.get(f"{key}_ci")
    if interval:
        axes.plot(interval, [place, place], color=color, lw=1.6, alpha=0.55, solid_capstyle="butt", gid="interval")
    axes.plot([value], [place], marker=marker, color=color, ms=5.5, ls="none", gid="score")
    return float(interval[0] if interval else value)


def score_figure(metrics: Mapping[str, Evaluation], key: str, chance: Mapping[str, float]) -> Figure:
    """A score of every model, a line per model with a marker and its interval per split; guessing is dotted."""
    splits = list(next(iter(metrics.values())))
    titles = [wrapped(model_title(name)) for name in metrics]
    height = sum(0.26 + 0.17 * max(len(splits), title.count("\n") + 1) for title in titles)
    figure = Figure(figsize=(WIDTH, 1.3 + height), layout="constrained")
    axes = figure.subplots()
    low = 1.0
    for number, split in enumerate(splits):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        shift = (number - (len(splits) - 1) / 2) * min(0.22, 0.7 / len(splits))
        for place, found in enumerate(metrics.values()):
            low = min(low, point(axes, place + shift, found[split], key, color, marker))
        axes.axvline(chance[split], color=color, lw=1, ls=":")
        axes.plot([], [], marker=marker, color=color, ls="none", label=split)
    axes.set_yticks(range(len(titles)), titles)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(titles) - 0.5, -0.5)
    cut_to(axes, min(low, *chance.values()))
    axes.set_xlabel(key.replace("_", " "))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


def chosen_models(metrics: Mapping[str, Evaluation], key: str) -> list[str]:
    """The final model and the best others on the last split, in the order of the report."""
    *others, final = metrics
    split = list(metrics[final])[-1]
    best = sorted(others, key=lambda name: -metrics[name][split][key])[: MODELS_SHOWN - 1]
    return [name for name in metrics if name in best or name == final]


def domain_figure(metrics: Mapping[str, Evaluation], models: Sequence[str], plural: str, key: str) -> Figure:
    """A score (`key`) by device or city (`plural`), a panel per split: a row for each with its clips and groups.

    Of more than `NAMES_SHOWN` those with the most clips are shown; unseen ones are marked with a star.
    """
    rows = {split: busiest(found[plural]) for split, found in metrics[models[-1]].items()}
    heights = [0.4 + len(names) * (0.16 + 0.13 * len(models)) for names in rows.values()]
    figure = Figure(figsize=(WIDTH, 0.8 + sum(heights) + 0.35 * len(heights)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    low = 1.0
    for axes, (split, names) in zip(panels, rows.items(), strict=True):
        for number, model in enumerate(models):
            color, marker = (COLORS[0], "o") if model == models[-1] else (COLORS[1 + number], MARKERS[1 + number])
            shift = (number - (len(models) - 1) / 2) * 0.75 / len(models)
            for place, name in enumerate(names):
                low = min(low, point(axes, place + shift, metrics[model][split][plural][name], key, color, marker))
            axes.plot([], [], marker=marker, color=color, ls="none", label=wrapped(model_title(model), 32))
        axes.set_yticks(range(len(names)), [domain_label(name, one) for name, one in names.items()])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(split, loc="left", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    cut_to(panels[-1], low)
    panels[-1].set_xlabel(key.replace("_", " "))
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return figure


def busiest(found: Mapping[str, Any]) -> dict[str, Any]:
    """The devices or cities with the most clips, in their order."""
    most = sorted(found, key=lambda name: -found[name]["clips"])[:NAMES_SHOWN]
    return {name: one for name, one in found.items() if name in most}


def domain_label(name: str, scores: Mapping[str, Any]) -> str:
    """A device or city with its counts, as in "s4* (90 clips, 18 groups)"."""
    star = "*" if scores["seen"] is False else ""
    return f"{short(name)}{star} ({scores['clips']} clips, {scores['groups']} groups)"
