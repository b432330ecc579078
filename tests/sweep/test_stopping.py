"""What stops trials early decides after a restart as if there had been none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from raymae.config import SweepConfig
from raymae.sweep.results import Record
from raymae.sweep.search.stopping import PERCENT, SCORE, Recorded, scheduler_of

PERCENTS = (20.0, 40.0, 60.0, 80.0)


def run(rule: Any, name: str, scores: list[float], again: int = 0) -> Record:
    """Run a trial under a rule; the first `again` reports come twice, as from a trial that resumes."""
    trial, history, last = Recorded(name), [], {}
    rule.on_trial_add(None, trial)
    reports = list(zip(PERCENTS, scores, strict=True))
    for percent, score in [*reports[:again], *reports]:
        last = {PERCENT: percent, SCORE: score}
        if not history or percent > history[-1]["percent"]:
            history.append({"percent": percent, "step": percent, "score": score})
        if rule.on_trial_result(None, trial, last) == TrialScheduler.STOP:
            rule.on_trial_complete(None, trial, last)
            return Record(key=name, changes={}, status="stopped", score=score, history=history)
    rule.on_trial_complete(None, trial, {PERCENT: 100.0, SCORE: scores[-1]})
    return Record(key=name, changes={}, status="finished", score=scores[-1], history=history)


SCORES = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=4, max_size=8)


@pytest.mark.parametrize("stopping", ["asha", "median"])
@given(scores=SCORES, cut=st.integers(0, 8), again=st.integers(0, 4))
def test_a_restart_changes_no_decision(stopping: Any, scores: list[list[float]], cut: int, again: int) -> None:
    sweep, undisturbed = SweepConfig(stopping=stopping, grace=0.2), []
    rule = scheduler_of(sweep, [])
    undisturbed = [run(rule, str(number), one) for number, one in enumerate(scores)]
    resumed = scheduler_of(sweep, undisturbed[:cut])
    rest = [run(resumed, str(number), one, again) for number, one in enumerate(scores) if number >= cut]
    assert rest == undisturbed[cut:]


@pytest.mark.parametrize("stopping", ["asha", "median"])
def test_both_rules_stop_the_worse_ones(stopping: Any) -> None:
    rule = scheduler_of(SweepConfig(stopping=stopping, grace=0.2), [])
    good = [run(rule, str(number), [0.5, 0.6, 0.7, 0.8]) for number in range(4)]
    assert {one.status for one in good} == {"finished"}
    assert run(rule, "bad", [0.1, 0.1, 0.1, 0.1]).status == "stopped"
    assert len(run(rule, "better", [0.6, 0.7, 0.8, 0.9]).history) == 4
    assert scheduler_of(SweepConfig(stopping="none"), good) is None


@pytest.mark.parametrize("stopping", ["asha", "median"])
def test_shared_stages_report_no_score(stopping: Any) -> None:
    rule: Any = scheduler_of(SweepConfig(stopping=stopping, grace=0.2), [])
    stage = Recorded("stage")
    rule.on_trial_add(None, stage)
    rule.on_trial_complete(None, stage, {SCORE: float("nan"), "status": "finished"})
    assert run(rule, "one", [0.5, 0.6, 0.7, 0.8]).status == "finished"
