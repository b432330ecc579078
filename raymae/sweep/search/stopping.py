"""Rules that stop bad trials early, which go on after a restart as if there had been none: Tune's own schedulers, told
what the recorded trials had reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from raymae.config import SweepConfig
from raymae.sweep.results import Record

SCORE, PERCENT = "score", "percent"
"""In a report of a trial: the score on split val, and the share of the final stage's training."""
FEWEST = 3
"""Other trials that the median is taken of, at least."""


@dataclass(frozen=True)
class Recorded:
    """A trial of an earlier start, as far as schedulers look at trials."""

    trial_id: str


class Median(MedianStoppingRule):
    """Tune's median rule, for trials that report again what they had reported before they were interrupted, and beside
    shared stages, which report no score."""

    def __init__(self, grace: float) -> None:
        super().__init__(
            time_attr=PERCENT,
            metric=SCORE,
            mode="max",
            grace_period=100 * grace,
            min_samples_required=FEWEST,
            min_time_slice=float("inf"),  # type: ignore[arg-type]  # never pauses a trial
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The decision on a report; one that was there before changes nothing."""
        before = self._results.get(trial)
        if before and PERCENT in result and result[PERCENT] <= before[-1][PERCENT]:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Keep the last report of a trial that has a score."""
        if PERCENT in result and SCORE in result:
            super().on_trial_complete(tune_controller, trial, result)


def scheduler_of(sweep: SweepConfig, known: Sequence[Record]) -> TrialScheduler | None:
    """The rule of `sweep.stopping`, which knows the reports of the recorded trials; None where none stops."""
    if sweep.stopping == "none":
        return None
    rule: Any
    if sweep.stopping == "median":
        rule = Median(sweep.grace)
    else:
        rule = AsyncHyperBandScheduler(
            time_attr=PERCENT,
            metric=SCORE,
            mode="max",
            max_t=100,
            grace_period=100 * sweep.grace,  # type: ignore[arg-type]  # need not be a whole number
            reduction_factor=sweep.reduction,
        )
    for record in known:
        _tell(rule, record)
    return rule  # type: ignore[no-any-return]


def _tell(rule: Any, record: Record) -> None:
    """Tell a rule what a recorded trial reported; how it decided then is recorded, too, and isn't decided anew."""
    trial, last = Recorded(record.key), {}
    rule.on_trial_add(None, trial)
    for point in record.history:
        last = {PERCENT: point["percent"], SCORE: point["score"]}
        rule.on_trial_result(None, trial, last)
    if record.status == "finished" and record.score is not None:
        last = {PERCENT: 100.0, SCORE: record.score}
    if last:
        rule.on_trial_complete(None, trial, last)
