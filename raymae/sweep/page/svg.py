"""SVG as text: elements with everything escaped, colors of scores, ticks."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from raymae.config import to_text
from raymae.sweep.space import Axis

BINS, MOST_WHOLE = 6, 8
"""Cells of a range of a heat map; a range of no more whole numbers has one for each."""


def tag(name: str, *inner: str, **attributes: Any) -> str:
    """An element around others; `class_` is class, and other underscores are hyphens."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(one)}"' for key, one in attributes.items())
    return f"<{name}{words}>{''.join(inner)}</{name}>"


def _value(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else html.escape(str(value))


def text(x: float, y: float, words: str, **attributes: Any) -> str:
    """A text at a place."""
    return tag("text", html.escape(words), x=float(x), y=float(y), **attributes)


def name(x: float, y: float, path: str, **attributes: Any) -> str:
    """The path of a setting in two lines, its section above its name; y is that of the lower one."""
    section, _, last = path.rpartition(".")
    above = text(x, y - 14, f"{section}.", **({"class_": "soft"} | attributes)) if section else ""
    return above + text(x, y, last, **attributes)


def hint(words: str) -> str:
    """What a browser shows beside the pointer."""
    return tag("title", html.escape(words))


def line(points: Sequence[tuple[float, float]], *inner: str, **attributes: Any) -> str:
    """A line through points."""
    return tag("polyline", *inner, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), fill="none", **attributes)


def svg(width: float, height: float, *inner: str, label: str) -> str:
    """A drawing of so many pixels."""
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    return tag("svg", *inner, role="img", aria_label=label, **size)


def figure(drawing: str, caption: str) -> str:
    """A drawing with a caption."""
    return tag(
        "figure", f'<div class="drawing">{drawing}</div>', tag("figcaption", html.escape(caption)), class_="chart"
    )


@dataclass(frozen=True)
class Scale:
    """Places of numbers between two ends, from 0 to 1."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The place of a number; 0.5 where both ends are the same."""
        low, high, value = (
            (math.log(one) for one in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Some round numbers between the ends."""
        if self.log:
            return [float(f"{one:.2g}") for one in np.geomspace(self.low, self.high, 4)]
        if self.high <= self.low:
            return [self.low]
        found = MaxNLocator(5, integer=self.whole).tick_values(self.low, self.high)
        return [float(one) for one in found if self.low - 1e-9 <= one <= self.high + 1e-9]


def scale_of(values: Sequence[float], *, log: bool = False) -> Scale:
    """The scale from the smallest to the largest of some numbers."""
    return Scale(min(values), max(values), log) if values else Scale(0.0, 1.0)


def color(place: float) -> str:
    """The style of a color for a place from 0 to 1, as `page.css` defines both ends for light and dark."""
    return f"--at:{100 * place:.0f}%"


def axis_place(axis: Axis, value: Any) -> float:
    """The place of a value on its axis, from 0 to 1."""
    if axis.is_range:
        return Scale(axis.low, axis.high, axis.log)(float(value))
    return axis.values.index(value) / (len(axis.values) - 1)


def axis_ticks(axis: Axis) -> list[tuple[float, str]]:
    """Places and texts of an axis."""
    if axis.is_range:
        scale = Scale(axis.low, axis.high, axis.log, axis.whole)
        return [(scale(one), f"{one:.3g}") for one in scale.ticks()]
    return [(axis_place(axis, value), to_text(value)) for value in axis.values]


def cells(axis: Axis) -> list[str]:
    """The names of the cells that an axis is divided into: its values, or parts of a range."""
    if not axis.is_range:
        return [to_text(value) for value in axis.values]
    if axis.whole and axis.high - axis.low < MOST_WHOLE:
        return [str(value) for value in range(int(axis.low), int(axis.high) + 1)]
    ends = np.geomspace(axis.low, axis.high, BINS + 1) if axis.log else np.linspace(axis.low, axis.high, BINS + 1)
    return [f"{low:.2g} to {high:.2g}" for low, high in itertools.pairwise(ends)]


def cell_of(axis: Axis, value: Any) -> int:
    """The number of the cell that a value lies in."""
    if not axis.is_range:
        return axis.values.index(value)
    if axis.whole and axis.high - axis.low < MOST_WHOLE:
        return int(value) - int(axis.low)
    return min(BINS - 1, max(0, int(axis_place(axis, value) * BINS)))
