"""The space of a sweep: fields of the configuration by path, with lists or ranges of values. No Ray."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymae.config import Config, field_type, from_text, to_text
from raymae.config.paths import choices_of

RANGE = re.compile(r"(?:(log|uniform):)?([^:]+?)\.\.([^:]+)")
MASK_RATIOS = "model.mask_ratio=0.6,0.75,0.9"
COVERAGES = "pseudo_label.coverage=0.3,0.5,0.7"
MATCHES = "consistency.confidence_threshold=0.8,0.9,0.95"
THRESHOLDS = "pseudo_label.confidence_threshold=0.7,0.8,0.9"
DIGITS = 4
"""Significant digits of a drawn number."""
ATTEMPTS = 100
"""Draws per wanted point; a space may have fewer points than wanted."""

Values = dict[str, Any]
"""A point of a space: values by path."""


@dataclass(frozen=True)
class Axis:
    """One field with a list of values or a range of numbers."""

    path: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whether the range is of whole numbers, both ends included."""

    @property
    def is_range(self) -> bool:
        """Whether the axis is a range."""
        return not self.values

    @property
    def ends(self) -> tuple[Any, Any]:
        """The first and the last value, which differ."""
        if self.is_range:
            return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)
        return self.values[0], self.values[-1]

    def text(self) -> str:
        """The axis as text that `parse_axis` reads."""
        if self.is_range:
            low, high = self.ends
            return f"{self.path}={'log' if self.log else 'uniform'}:{low}..{high}"
        return f"{self.path}={','.join(map(to_text, self.values))}"

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value: uniform over the range or its logarithm, or one of the list."""
        if not self.is_range:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.low, self.high + (1 if self.whole else 0)
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return min(int(value), int(self.high)) if self.whole else float(f"{value:.{DIGITS}g}")


def parse_axis(text: str) -> Axis:
    """An axis from FIELD=VALUES (`SweepConfig.space`); ValueError says what is wrong and what would be right.

    Every value is converted to the field's declared type; the configuration's own checks come later.
    """
    path, equals, rest = text.partition("=")
    path, rest = path.strip().removeprefix("--").replace("-", "_"), rest.strip()
    if not equals or not rest:
        raise ValueError(f"sweep.space {text}: should be FIELD=VALUES, as in {MASK_RATIOS}")
    try:
        kinds = choices_of(field_type(Config, path))
        numeric = {int, float}.intersection(kinds)
        if numeric and (found := RANGE.fullmatch(rest)):
            return _range(path, *found.groups(), whole=float not in kinds)
        values = tuple(from_text(Config, path, word.strip()) for word in rest.split(","))
    except ValueError as error:
        raise ValueError(f"sweep.space {text}: {error}") from None
    twice = [to_text(value) for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"sweep.space {text}: names {twice[0]} twice")
    if len(values) < 2:
        raise ValueError(f"sweep.space {text}: one value is nothing to compare; set it with --{path} {rest}")
    return Axis(path, values)


def _range(path: str, scale: str | None, low: str, high: str, *, whole: bool) -> Axis:
    ends = [from_text(Config, path, end.strip()) for end in (low, high)]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in ends):
        raise ValueError(f"{low}..{high} should lie between two numbers")
    first, last = map(float, ends)
    if not first < last:
        raise ValueError(f"{low}..{high} is empty: put the smaller end first")
    if scale == "log" and first <= 0:
        raise ValueError(f"log:{low}..{high} should begin above 0")
    return Axis(path, (), first, last, scale == "log", whole)


def default_space(config: Config) -> tuple[str, ...]:
    """The default axes: mask ratio, if the recipe pre-trains; and the setting that accepts guesses for the final
    classifier, if the recipe uses unlabelled clips (single-label clips only) and has such a setting."""
    use = config.unlabelled[-1:] if config.finetune.labels == "single" else ()
    found = [] if config.finetune.init_from else [MASK_RATIOS]
    if use == ("consistency",):
        found += [MATCHES] if config.consistency.method == "fixmatch" else []
    elif use and config.pseudo_label.confidence_threshold is not None:
        found.append(THRESHOLDS)
    elif use and config.pseudo_label.coverage is not None:
        found.append(COVERAGES)
    return tuple(found)


def parse_space(config: Config) -> list[Axis]:
    """The axes of a configuration's sweep; ValueError for one that can't be read, is given twice or has no grid."""
    given = config.sweep.space or default_space(config)
    axes = [parse_axis(text) for text in given]
    paths = [axis.path for axis in axes]
    twice = [path for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise ValueError(f"sweep.space names {twice[0]} twice: give all its values at once")
    ranges = [axis.path for axis in axes if axis.is_range]
    if ranges and config.sweep.search == "grid":
        raise ValueError(
            f"sweep.space: {ranges[0]} is a range, which has no grid: list its values, or choose --sweep.search random "
            "or optuna"
        )
    for axis in axes:
        if axis.is_range and axis.path.startswith(("data.", "audio.")):
            raise ValueError(
                f"sweep.space: {axis.path} decides the feature store, and a range needs a new one for each trial: list "
                "its values"
            )
    return axes


def size(axes: Sequence[Axis]) -> int | None:
    """Number of points of a space; None where it has a range."""
    return None if any(axis.is_range for axis in axes) else math.prod(len(axis.values) for axis in axes)


def grid(axes: Sequence[Axis]) -> Iterator[Values]:
    """Every combination of the lists, with the first field in the outermost loop."""
    paths = [axis.path for axis in axes]
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip(paths, values, strict=True))


def drawn(axes: Sequence[Axis], count: int, seed: int) -> list[Values]:
    """`count` different points drawn with a seed; fewer where the space has fewer."""
    rng = np.random.default_rng([seed, 17])
    found: dict[str, Values] = {}
    count = min(count, size(axes) or count)
    for _ in range(ATTEMPTS * count):
        if len(found) == count:
            break
        point = {axis.path: axis.draw(rng) for axis in axes}
        found.setdefault(label(point), point)
    return list(found.values())


def label(values: Values) -> str:
    """A point as text: path=value, separated by spaces."""
    return " ".join(f"{path}={to_text(value)}" for path, value in values.items())
