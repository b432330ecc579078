"""Population-based training (Jaderberg et al. 2017) in generations: between two of them the worst members go on from
the weights of the best, with values near theirs. No Ray.

Tune has a scheduler for it, which keeps its decisions and checkpoints in Tune's own pickles. Here a member of a
generation is a segment of the last stage's training (`raymae.training.state.segment`), whose key names all that decides
it, and the next generation is a function of the scores: so a sweep that is started again decides as before, and trains
no segment twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymae.config import SweepConfig, to_dict
from raymae.config.stages import STAGES
from raymae.storage.checksums import digest
from raymae.sweep.space import DIGITS, Axis, Values, drawn, label

CHANGEABLE: Mapping[str, tuple[str, ...]] = {
    "finetune": (
        *("lr", "base_lr", "min_lr", "weight_decay", "layer_decay", "head_lr_scale", "clip_grad_norm"),
        *("label_smoothing", "ema_decay", "augment.eq_p", "augment.mixup_p", "augment.mixup_alpha"),
        *("augment.mixstyle_p", "augment.roll_p"),
    ),
    "consistency": ("lr_scale", "weight", "strong.eq_p", "strong.mixstyle_p"),
}
"""By kind of training the fields of its section that may change between two of its steps: not those that decide the
order of clips, the number of steps, the passes or the shape of the model."""
FACTORS, STEPS = (0.8, 1.25), (-0.1, 0.1)
"""How a value on a logarithmic range changes, as a factor, and one on a uniform range, in shares of the range."""
ATTEMPTS = 20
"""Draws of a value that no other member of its generation has."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A member of a generation."""

    key: str
    generation: int
    """From 0."""
    generations: int
    member: int
    """From 0."""
    values: Values
    parent: str = ""
    """The key of the segment that it continues; empty in the first generation."""
    source: int | None = None
    """The member that it continues, if it isn't the same one."""

    @property
    def is_last(self) -> bool:
        """Whether the stage ends with it."""
        return self.generation == self.generations - 1

    def lineage(self) -> dict[str, Any]:
        """Where it stands in the population, for records."""
        source = self.member if self.source is None else self.source
        return {
            "generation": self.generation,
            "generations": self.generations,
            "member": self.member,
            "source": None if self.generation == 0 else source,
            "parent": self.parent,
        }


@dataclass(frozen=True, kw_only=True)
class Population:
    """What decides a population, all generations of which follow from it and the scores."""

    axes: Sequence[Axis]
    stage: str
    """The key of the last stage with the values of the configuration: of all that its segments share."""
    members: int
    generations: int
    share: float
    """Share of the members that goes on from the best such share."""
    seed: int

    def first(self) -> list[Segment]:
        """The first generation: points drawn from the space."""
        points = drawn(self.axes, self.members, self.seed)
        return [self._segment(0, member, values) for member, values in enumerate(points)]

    def following(self, before: Sequence[Segment], scores: Mapping[str, float]) -> list[Segment]:
        """The next generation after one whose segments have these scores by key; one without a score has failed, and
        its member ends there."""
        alive = [one for one in before if one.key in scores]
        ranked = sorted(alive, key=lambda one: (-scores[one.key], one.key))
        count = min(max(1, int(self.share * len(alive))), len(alive) // 2)
        best, worst = ranked[:count], {one.key for one in ranked[len(ranked) - count :]}
        found: list[Segment] = []
        taken = {label(one.values) for one in alive if one.key not in worst}
        for one in alive:
            generation = one.generation + 1
            if one.key not in worst:
                found.append(self._segment(generation, one.member, one.values, one.key))
                continue
            rng = np.random.default_rng([self.seed, 29, generation, one.member])
            source = best[int(rng.integers(len(best)))]
            values = self._near(source.values, rng, taken)
            taken.add(label(values))
            found.append(self._segment(generation, one.member, values, source.key, source.member))
        return found

    def _near(self, values: Values, rng: np.random.Generator, taken: set[str]) -> Values:
        """Values near some others, which no other member has if that can be."""
        for _ in range(ATTEMPTS):
            found = {axis.path: moved(values[axis.path], axis, rng) for axis in self.axes}
            if label(found) not in taken:
                break
        return found

    def _segment(
        self, generation: int, member: int, values: Values, parent: str = "", source: int | None = None
    ) -> Segment:
        key = digest([self.stage, parent, to_dict(dict(values)), generation, self.generations])
        return Segment(
            key=key,
            generation=generation,
            generations=self.generations,
            member=member,
            values=values,
            parent=parent,
            source=source,
        )


def moved(value: float, axis: Axis, rng: np.random.Generator) -> float:
    """A value of a range after a step up or down within it."""
    place = int(rng.integers(2))
    low, high = axis.ends
    found = value * FACTORS[place] if axis.log else value + STEPS[place] * (high - low)
    found = min(max(float(f"{found:.{DIGITS}g}"), low), high)
    return round(found) if axis.whole else found


def population_of(sweep: SweepConfig, axes: Sequence[Axis], stage: str, seed: int) -> Population:
    """The population of a sweep, whose last stage has a key."""
    return Population(
        axes=axes,
        stage=stage,
        members=sweep.count,
        generations=sweep.generations,
        share=sweep.exploit_share,
        seed=seed,
    )


def check_changeable(axes: Sequence[Axis], stage: str) -> None:
    """ValueError for a field of the space that can't change while the last stage, of this kind, trains."""
    section = "consistency" if STAGES[stage].kind == "consistency" else "finetune"
    right = [f"{section}.{name}" for name in CHANGEABLE[section]]
    for axis in axes:
        if axis.path not in right:
            raise ValueError(
                f"sweep.space: {axis.path} can't change between two steps of {stage}, as sweep.search = population "
                f"does; it varies ranges of {', '.join(right)}"
            )
        if not axis.is_range:
            raise ValueError(
                f"sweep.space: {axis.text()} is a list: sweep.search = population varies ranges, such as "
                f"{axis.path}=log:1e-5..1e-3"
            )
