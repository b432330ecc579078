"""Drawings of a sweep's trials, as SVG: heat map, parallel coordinates, learning curves, cost, importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymae.sweep.page.svg import (
    Scale,
    axis_place,
    axis_ticks,
    cell_of,
    cells,
    color,
    hint,
    line,
    name,
    scale_of,
    svg,
    tag,
    text,
)
from raymae.sweep.results import Record, front
from raymae.sweep.space import Axis

LETTER = 7.2
"""Width of a letter of the drawings' 12 px, about."""
Trials = Sequence[Record]


def scored(records: Trials) -> list[Record]:
    """The trials with a score, the best last, so that it is drawn on top."""
    return sorted((one for one in records if one.score is not None), key=lambda one: one.score or 0.0)


def scores(records: Trials) -> list[float]:
    """The scores of the trials that have one."""
    return [one.score for one in records if one.score is not None]


def about(record: Record) -> str:
    """What the pointer shows of a trial."""
    score = "" if record.score is None else f" {record.score:.4f}"
    return f"{record.label}: {record.status}{score}" + (f"; {record.error}" if record.error else "")


# Heat map -----------------------------------------------------------------------------------------------------------


def heat_map(records: Trials, axes: Sequence[Axis]) -> str:
    """The best score and the number of trials of each cell of the first two axes."""
    rows, columns = (axes[0], axes[1]) if len(axes) > 1 else (None, axes[0])
    down, across = cells(rows) if rows else [""], cells(columns)
    wide, high, top = max(84.0, 12 + LETTER * max(map(len, across))), 54.0, 20.0
    longest = max([*map(len, down), *(map(len, rows.path.split(".")) if rows else [0])])
    left = 24 + LETTER * longest if rows else 10.0
    scale, inner = scale_of(scores(records)), []
    for row, first in enumerate(down):
        y = top + 24 + row * high
        inner.append(text(left - 8, y + high / 2 + 4, first, text_anchor="end"))
        for column in range(len(across)):
            here = [
                one
                for one in records
                if cell_of(columns, one.changes[columns.path]) == column
                and (rows is None or cell_of(rows, one.changes[rows.path]) == row)
            ]
            inner.append(_cell(here, left + column * wide, y, (wide, high), scale))
    inner += [text(left + (k + 0.5) * wide, top + 16, one, text_anchor="middle") for k, one in enumerate(across)]
    inner.append(text(left, 12, columns.path, class_="soft"))
    if rows:
        inner.append(name(left - 8, top + 12, rows.path, text_anchor="end", class_="soft"))
    width = max(left + len(across) * wide, left + LETTER * len(columns.path)) + 8
    return svg(width, top + 28 + len(down) * high, *inner, label="Heat map of scores")


def _cell(here: Trials, x: float, y: float, size: tuple[float, float], scale: Scale) -> str:
    finished = scores([one for one in here if one.status == "finished"])
    stopped = scores([one for one in here if one.status == "stopped"])
    best = max(finished or stopped, default=None)
    box = {"x": x + 1, "y": y + 1, "width": size[0] - 2, "height": size[1] - 2, "rx": 4}
    middle, counted = x + size[0] / 2, f"{len(here)} trial{'' if len(here) == 1 else 's'}"
    inside = "\n".join(map(about, here)) or "no trial yet"
    if best is None:
        words: str = here[0].status if here else "–"
        drawn = tag("rect", class_="empty", **box) + text(middle, y + 25, words, text_anchor="middle", class_="soft")
        more = text(middle, y + 41, counted, text_anchor="middle", class_="soft small") if here else ""
        return tag("g", hint(inside), drawn, more)
    place = scale(best)
    kind = "strong" if place > 0.5 else "weak"
    shown = f"{best:.3f}" if finished else f"({best:.3f})"
    return tag(
        "g",
        hint(inside),
        tag("rect", class_="heat" if finished else "heat stopped", style=color(place), **box),
        text(middle, y + 25, shown, text_anchor="middle", class_=kind),
        text(
            middle,
            y + 41,
            counted if finished else f"stopped, {len(here)}",
            text_anchor="middle",
            class_=f"{kind} small",
        ),
    )


# Parallel coordinates -----------------------------------------------------------------------------------------------


def parallel(records: Trials, axes: Sequence[Axis], metric: str) -> str:
    """A line for each trial through its values, up to its score."""
    longest = max(len(part) for path in (metric, *(axis.path for axis in axes)) for part in path.split("."))
    step, left, top, high = max(120.0, 24 + LETTER * longest), 10.0, 44.0, 220.0
    scale, inner, floor = scale_of(scores(records)), [], top + high
    last = left + len(axes) * step
    for number, axis in enumerate(axes):
        x = left + number * step
        inner.append(tag("line", x1=x, x2=x, y1=top, y2=floor, class_="axis"))
        inner.append(name(x, top - 14, axis.path))
    inner.append(tag("line", x1=last, x2=last, y1=top, y2=floor, class_="axis"))
    inner.append(text(last, top - 14, metric))
    unscored = [one for one in records if one.score is None]
    best = max(scores([one for one in records if one.status == "finished"]), default=None)
    for one in [*unscored, *scored(records)]:
        points = [
            (left + number * step, floor - high * axis_place(axis, one.changes[axis.path]))
            for number, axis in enumerate(axes)
        ]
        if one.score is None:
            stop = (points[-1][0] + step / 3, points[-1][1])
            inner.append(line([*points, stop], hint(about(one)), class_="trial unscored"))
            continue
        points.append((last, floor - high * scale(one.score)))
        kind = "trial" + (" best" if one.status == "finished" and one.score == best else "")
        kind += " stopped" if one.status == "stopped" else ""
        inner.append(line(points, hint(about(one)), class_=kind, style=color(scale(one.score))))
    for number, axis in enumerate(axes):
        inner += [
            text(left + number * step + 5, floor - high * at + 4, words, class_="halo")
            for at, words in axis_ticks(axis)
        ]
    if scores(records):
        inner += [text(last + 5, floor - high * scale(one) + 4, f"{one:.3f}", class_="halo") for one in scale.ticks()]
    return svg(last + 16 + LETTER * len(metric), floor + 16, *inner, label="Parallel coordinates of the trials")


# Curves and costs ---------------------------------------------------------------------------------------------------


def _frame(
    x: Scale, y: Scale, labels: tuple[str, str], x_words: Mapping[float, str]
) -> tuple[str, float, float, float, float]:
    """Grid and texts of a plot; and its left, top, width and height."""
    left, top, width, height = 56.0, 14.0, 460.0, 250.0
    inner = []
    for one in y.ticks():
        at = top + height * (1 - y(one))
        inner.append(tag("line", x1=left, x2=left + width, y1=at, y2=at, class_="grid"))
        inner.append(text(left - 6, at + 4, f"{one:.3g}", text_anchor="end"))
    for value, words in x_words.items():
        at = left + width * x(value)
        inner.append(tag("line", x1=at, x2=at, y1=top, y2=top + height, class_="grid"))
        inner.append(text(at, top + height + 16, words, text_anchor="middle"))
    middle = top + height / 2
    inner.append(text(left + width / 2, top + height + 34, labels[0], text_anchor="middle", class_="soft"))
    inner.append(text(12, middle, labels[1], text_anchor="middle", class_="soft", transform=f"rotate(-90 12 {middle})"))
    return "".join(inner), left, top, width, height


def curves(records: Trials, metric: str) -> str | None:
    """The score of every validation by the share of the last stage's training; None where there is none."""
    found = [one for one in scored(records) if one.history]
    if not found:
        return None
    lines = {id(one): [(point["percent"], point["score"]) for point in one.history] for one in found}
    for one in found:
        if one.status == "finished" and one.score is not None:
            lines[id(one)].append((100.0, one.score))
    x, y = Scale(0.0, 100.0), scale_of([score for some in lines.values() for _, score in some])
    ticks = {value: f"{value:.0f} %" for value in (0.0, 25.0, 50.0, 75.0, 100.0)}
    frame, left, top, width, height = _frame(x, y, ("share of the last stage's training", metric), ticks)
    scale, drawn = scale_of(scores(records)), []
    best = max(scores([one for one in found if one.status == "finished"]), default=None)
    for one in found:
        points = [(left + width * x(percent), top + height * (1 - y(score))) for percent, score in lines[id(one)]]
        kind = "trial" + (" best" if one.score == best else "") + (" stopped" if one.status == "stopped" else "")
        style = color(scale(one.score or 0.0))
        drawn.append(line(points, hint(about(one)), class_=kind, style=style))
        end = {"cx": points[-1][0], "cy": points[-1][1], "r": 3.0}
        drawn.append(tag("circle", hint(about(one)), class_="point", style=style, **end))
    return svg(left + width + 20, top + height + 44, frame, *drawn, label="Learning curves")


def pareto(records: Trials, metric: str, level: Sequence[str] = ()) -> str | None:
    """Scores by the training's cost, with the front; `level` are the keys of the points on a level with the winner."""
    found = [one for one in scored(records) if one.status == "finished" and one.flops]
    if not found:
        return None
    costs = [(one.flops or 0.0) / 1e12 for one in found]
    low, high = min(costs), max(costs)
    x = Scale(low / 1.15, high * 1.15, log=True) if high > 10 * low else Scale(low - 0.1 * high, high * 1.1)
    y = scale_of(scores(found))
    ticks = {one: f"{one:.3g}" for one in x.ticks()}
    frame, left, top, width, height = _frame(x, y, ("training of all stages, TFLOP", metric), ticks)

    def at(one: Record) -> tuple[float, float]:
        return left + width * x((one.flops or 0.0) / 1e12), top + height * (1 - y(one.score or 0.0))

    steps: list[tuple[float, float]] = []
    for one in front(records):
        here = at(one)
        steps += [(here[0], steps[-1][1]), here] if steps else [here]
    drawn = [line(steps, class_="front")]
    for one in found:
        cx, cy = at(one)
        kind = "point level" if one.key in level else "point"
        words = f"{about(one)}, {(one.flops or 0.0) / 1e12:.3g} TFLOP"
        style = color(scale_of(scores(records))(one.score or 0.0))
        drawn.append(tag("circle", hint(words), class_=kind, cx=cx, cy=cy, r=6.0, style=style))
    return svg(left + width + 20, top + height + 44, frame, *drawn, label="Score against cost")


def bars(shares: Mapping[str, float]) -> str:
    """Shares of the fields, the largest first."""
    left, width, high = 16 + LETTER * max(map(len, shares)), 300.0, 28.0
    inner = []
    for row, (path, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y = row * high
        inner.append(text(left - 8, y + 18, path, text_anchor="end"))
        inner.append(tag("rect", x=left, y=y + 4, width=max(1.0, width * share), height=high - 8, rx=3, class_="bar"))
        inner.append(text(left + width * share + 6, y + 18, f"{share:.0%}"))
    return svg(left + width + 50, len(shares) * high + 4, *inner, label="Importance of the fields")
