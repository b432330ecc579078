"""Figure of a sweep: a heat map over its first two fields, or a scatter plot where one of them is a range."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raymae.config import to_text
from raymae.sweep.results import Record
from raymae.sweep.space import Axis

DARK = 0.55
"""Position on the color map, 0 to 1, above which text is black."""
CMAP = "viridis"


def sweep_figure(records: Sequence[Record], axes: Sequence[Axis], metric: str, title: str) -> Figure:
    """The scores over the first two fields; the best one where several trials share a cell."""
    if any(axis.is_range for axis in axes[:2]):
        return _points(records, axes, metric, title)
    return _heat_map(records, axes, metric, title)


def _scale(records: Sequence[Record]) -> Normalize:
    scores = [one.score for one in records if one.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1e-6)


def _subtitle(axes: Sequence[Axis]) -> str:
    others = ", ".join(axis.path for axis in axes[2:])
    return f"\nbest over {others}" if others else ""


def _heat_map(records: Sequence[Record], axes: Sequence[Axis], metric: str, title: str) -> Figure:
    rows, columns = axes[0], axes[1] if len(axes) > 1 else None
    across = columns.values if columns else ("",)
    figure = Figure(figsize=(3.4 + 1.25 * len(across), 2.2 + 0.75 * len(rows.values)), layout="constrained")
    plot, scale = figure.subplots(), _scale(records)
    for row, first in enumerate(rows.values):
        for column, second in enumerate(across):
            here = [
                one
                for one in records
                if one.changes[rows.path] == first and (columns is None or one.changes[columns.path] == second)
            ]
            _cell(plot, row, column, here, scale)
    plot.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(rows.values) - 0.5), ylabel=rows.path)
    plot.set_xticks(range(len(across)), [to_text(value) for value in across])
    plot.set_yticks(range(len(rows.values)), [to_text(value) for value in rows.values])
    if columns:
        plot.set_xlabel(columns.path)
    else:
        plot.tick_params(bottom=False)
    plot.set_title(title + _subtitle(axes), fontsize=10)
    _bar(figure, plot, scale, metric)
    return figure


def _cell(plot: Axes, row: int, column: int, here: Sequence[Record], scale: Normalize) -> None:
    """One cell: its best finished score; else that of stopped trials, in brackets and hatched; else hatched."""
    finished = [one.score for one in here if one.status == "finished" and one.score is not None]
    stopped = [one.score for one in here if one.status == "stopped" and one.score is not None]
    score = max(finished or stopped, default=None)
    place = (column - 0.5, row - 0.5)
    if score is None:
        words = here[0].status if here else "missing"
        plot.add_patch(Rectangle(place, 1, 1, facecolor="white", edgecolor="0.6", hatch="///"))
        _text(plot, column, row, words, "0.25", boxed=True)
        return
    color = matplotlib.colormaps[CMAP](scale(score))
    if finished:
        plot.add_patch(Rectangle(place, 1, 1, facecolor=color, edgecolor="white"))
        _text(plot, column, row, f"{score:.3f}", "black" if scale(score) > DARK else "white")
        return
    plot.add_patch(Rectangle(place, 1, 1, facecolor="white", edgecolor=color, hatch=".."))
    _text(plot, column, row, f"({score:.3f})\nstopped", "0.25", boxed=True)


def _text(plot: Axes, column: int, row: int, words: str, color: str, *, boxed: bool = False) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if boxed else None
    plot.text(column, row, words, ha="center", va="center", color=color, fontsize=10, bbox=box)


def _points(records: Sequence[Record], axes: Sequence[Axis], metric: str, title: str) -> Figure:
    """Finished trials as discs, stopped ones as triangles, the others as crosses."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    plot, scale = figure.subplots(), _scale(records)
    first, second = axes[0], axes[1] if len(axes) > 1 else None
    for status, marker in {"finished": "o", "stopped": "^", "failed": "x", "refused": "+"}.items():
        some = [one for one in records if one.status == status]
        if not some:
            continue
        x = [_place(first, one) for one in some]
        y = [_place(second, one) if second else (one.score or np.nan) for one in some]
        scores = [np.nan if one.score is None else one.score for one in some]
        style = {"c": "0.5"} if marker in "x+" else {"c": scores, "cmap": CMAP, "norm": scale, "edgecolors": "black"}
        plot.scatter(x, y, marker=marker, s=60, label=status, **style)
    _axis(plot, first, "x")
    if second:
        _axis(plot, second, "y")
    else:
        plot.set_ylabel(metric)
    plot.grid(alpha=0.3)
    plot.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4)
    plot.set_title(title + _subtitle(axes), fontsize=10)
    _bar(figure, plot, scale, metric)
    return figure


def _place(axis: Axis, record: Record) -> float:
    value = record.changes[axis.path]
    return float(value) if axis.is_range else float(axis.values.index(value))


def _axis(plot: Axes, axis: Axis, letter: str) -> None:
    """Label one side of the plot, and use a log scale for a log range."""
    label, scale, ticks = (
        (plot.set_xlabel, plot.set_xscale, plot.set_xticks)
        if letter == "x"
        else (plot.set_ylabel, plot.set_yscale, plot.set_yticks)
    )
    label(axis.path)
    if axis.log:
        scale("log")
    if not axis.is_range:
        ticks(range(len(axis.values)), [to_text(value) for value in axis.values])


def _bar(figure: Figure, plot: Axes, scale: Normalize, metric: str) -> None:
    figure.colorbar(ScalarMappable(scale, CMAP), ax=plot, label=metric)
