"""Fields of a space that have an effect only beside certain values of others, and points that compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raymae.config import Config, to_text
from raymae.config.unlabelled import ONLY_FOR
from raymae.sweep.points import Point
from raymae.sweep.space import Axis

NEEDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "pseudo_label.confidence_threshold": ("pseudo_label.rule", ("fixed", "flexmatch")),
    "pseudo_label.coverage": ("pseudo_label.rule", ("fixed",)),
    "pseudo_label.threshold_floor": ("pseudo_label.rule", ("flexmatch",)),
    **{f"consistency.{name}": ("consistency.method", methods) for name, methods in ONLY_FOR.items()},
}
"""By field the other one on which it depends, and the values of that one with which it has an effect."""
INSTEAD = {
    "pseudo_label.confidence_threshold": "pseudo_label.coverage",
    "pseudo_label.coverage": "pseudo_label.confidence_threshold",
}
"""By field the one that takes its place: one of both is None."""
USES = {"pseudo_label": "pseudo_labels", "consistency": "consistency"}
"""By section the use of unlabelled clips that it is about."""


def check_conditions(config: Config, axes: Sequence[Axis]) -> None:
    """ValueError for a field of the space that has no effect beside the other settings, saying what would be right."""
    for axis in axes:
        for problem in _problems(config, axis, {one.path: one for one in axes}):
            raise ValueError(f"sweep.space: {axis.path} {problem}")


def _problems(config: Config, axis: Axis, space: dict[str, Axis]) -> Iterator[str]:
    section, _, _ = axis.path.partition(".")
    use = USES.get(section)
    if use and "unlabelled" not in space and use not in config.unlabelled:
        yield f"has no effect: this recipe has no --unlabelled {use} (now {' '.join(config.unlabelled) or 'empty'})"
    if axis.path in NEEDS:
        other, right = NEEDS[axis.path]
        wrong = [value for value in _values(config, other, space) if value not in right]
        if wrong:
            hint = f"leave {wrong[0]} out of {other}" if other in space else f"set {_option(other)} {right[0]}"
            words = " or ".join(right)
            yield f"has an effect with {other} = {words} only, not with {wrong[0]}: {hint}, or vary another field"
    instead = INSTEAD.get(axis.path)
    others = _values(config, instead, space) if instead else (None,)
    if all(value is not None for value in others) and None not in axis.values:
        now = "which is varied, too: vary one of them" if instead in space else f"now {to_text(others[0])}"
        hint = "" if instead in space else f": vary that one, or set {_option(str(instead))} None"
        yield f"takes the place of {instead}, {now}{hint}"


def _values(config: Config, path: str, space: dict[str, Axis]) -> tuple[Any, ...]:
    """The values that a field has in a sweep: those of its axis, or the one of the configuration."""
    if path in space:
        return space[path].values or space[path].ends
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return (value,)


def _option(path: str) -> str:
    return f"--{path.replace('_', '-')}"


def check_different(points: Sequence[Point]) -> None:
    """ValueError where two points compute the same, as by a field without effect beside a value of another."""
    first: dict[str, Point] = {}
    for point in points:
        if point.plan is None:
            continue
        other = first.setdefault(point.plan.nodes[point.plan.final].key, point)
        if other is not point:
            differing = [path for path, value in point.values.items() if other.values[path] != value]
            same = [f"{path}={to_text(value)}" for path, value in point.values.items() if path not in differing]
            beside = f" beside {' '.join(same)}" if same else ""
            values = " or ".join(
                " ".join(f"{path}={to_text(one.values[path])}" for path in differing) for one in (other, point)
            )
            hint = f", or leave {same[0]} to a sweep of its own" if same else ""
            raise ValueError(f"sweep.space: {values}{beside} compute the same: name one of them{hint}")
