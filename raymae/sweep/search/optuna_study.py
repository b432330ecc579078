"""Points proposed by Optuna's TPE, by one score or by several objectives. No Ray.

Ray Tune's wrapper can't be told the values of earlier trials of several objectives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raymae.config import SweepConfig, to_text
from raymae.sweep.results import Record
from raymae.sweep.space import DIGITS, Axis, Values

DIRECTIONS: Mapping[str, Literal["minimize", "maximize"]] = {"score": "maximize", "flops": "minimize"}
"""By objective, a key of a trial's last report, what is better."""


@dataclass(frozen=True)
class Study:
    """A study of Optuna over the axes of a space; what is asked for and told has a name."""

    axes: Sequence[Axis]
    objectives: Sequence[str]
    seed: int
    _open: dict[str, Any] = field(default_factory=dict)
    _study: Any = None

    def __post_init__(self) -> None:
        import optuna

        logging.getLogger("optuna").setLevel(logging.ERROR)
        directions = [DIRECTIONS[name] for name in self.objectives]
        study = optuna.create_study(directions=directions, sampler=optuna.samplers.TPESampler(seed=self.seed))
        object.__setattr__(self, "_study", study)

    def learn(self, known: Sequence[Record]) -> None:
        """Learn from recorded trials that have all objectives: finished ones, or with the score alone stopped ones."""
        import optuna

        spaces = {axis.path: distribution(axis) for axis in self.axes}
        for one in known:
            values = self._values({"score": one.score, "flops": one.flops})
            if values is not None:
                params = {axis.path: _param(one.changes[axis.path], axis) for axis in self.axes}
                self._study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, values=values))

    def ask(self, name: str) -> Values:
        """The next point."""
        trial = self._study.ask({axis.path: distribution(axis) for axis in self.axes})
        self._open[name] = trial
        texts = {axis.path: {to_text(value): value for value in axis.values} for axis in self.axes}
        return {axis.path: texts[axis.path].get(found := trial.params[axis.path], _short(found)) for axis in self.axes}

    def tell(self, name: str, result: Mapping[str, Any] | None) -> None:
        """The last report of a point that was asked for; without all objectives, as of a failed one, it counts for
        nothing."""
        import optuna

        values = self._values(result or {})
        failed = optuna.trial.TrialState.FAIL if values is None else None
        self._study.tell(self._open.pop(name), values, state=failed)

    @property
    def trials(self) -> list[Any]:
        """Optuna's trials."""
        return list(self._study.trials)

    def _values(self, result: Mapping[str, Any]) -> list[float] | None:
        values = [result.get(name) for name in self.objectives]
        found = [float(value) for value in values if value is not None and math.isfinite(value)]
        return found if len(found) == len(values) else None


def study_of(sweep: SweepConfig, axes: Sequence[Axis], known: Sequence[Record], seed: int) -> Study:
    """The study of a sweep; each start draws with another seed."""
    study = Study(axes, sweep.objectives, seed + len(known))
    study.learn(known)
    return study


def distribution(axis: Axis) -> Any:
    """An axis as a distribution of Optuna; values of lists are texts."""
    import optuna.distributions as kinds

    if not axis.is_range:
        return kinds.CategoricalDistribution([to_text(value) for value in axis.values])
    low, high = axis.ends
    if axis.whole:
        return kinds.IntDistribution(low, high, log=axis.log)
    return kinds.FloatDistribution(low, high, log=axis.log)


def _param(value: Any, axis: Axis) -> Any:
    return value if axis.is_range else to_text(value)


def _short(value: Any) -> Any:
    """A drawn number with as many digits as those of a random search."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
