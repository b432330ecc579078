"""Optuna's proposals, by one objective and by two."""

from __future__ import annotations

from typing import Any

import pytest

from raymae.config import SweepConfig
from raymae.sweep.results import Record, front
from raymae.sweep.search.optuna_study import study_of
from raymae.sweep.space import parse_axis

AXES = [parse_axis("finetune.lr=log:1e-5..1e-1"), parse_axis("model.patch_size=8+8,4+8")]
TWO = SweepConfig(search="optuna", objectives=("score", "flops"), stopping="none")


def record(lr: float, score: float | None, flops: float | None, status: Any = "finished") -> Record:
    changes = {"finetune.lr": lr, "model.patch_size": (8, 8)}
    return Record(key=str(lr), changes=changes, status=status, score=score, flops=flops)


def test_the_study_learns_all_objectives_of_earlier_trials() -> None:
    known = [record(1e-3, 0.7, 2e12), record(1e-2, 0.8, 4e12), record(1e-4, 0.5, None, "stopped")]
    assert [trial.values for trial in study_of(TWO, AXES, known, 0).trials] == [[0.7, 2e12], [0.8, 4e12]]
    one = SweepConfig(search="optuna")
    assert [trial.values for trial in study_of(one, AXES, known, 0).trials] == [[0.7], [0.8], [0.5]]


def test_proposals_gather_where_scores_are_high() -> None:
    study = study_of(SweepConfig(search="optuna"), AXES, [], 0)
    drawn = []
    for number in range(60):
        values = study.ask(str(number))
        assert values["model.patch_size"] in ((8, 8), (4, 8))
        drawn.append(values["finetune.lr"])
        score = (1 - abs(values["finetune.lr"] - 1e-3) / 0.1) - 0.2 * (values["model.patch_size"] == (4, 8))
        study.tell(str(number), {"score": score})
    near = [sum(3e-4 < one < 3e-3 for one in part) for part in (drawn[:20], drawn[-20:])]
    assert near[1] > near[0]


def test_the_front_has_the_points_that_none_beats_in_both() -> None:
    records = [
        record(1, 0.5, 1e12),
        record(2, 0.7, 2e12),
        record(3, 0.6, 3e12),
        record(4, 0.7, 4e12),
        record(5, 0.9, 5e12),
        record(6, 0.99, 6e12, "stopped"),
    ]
    assert [one.key for one in front(records)] == ["1", "2", "5"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"objectives": ("flops",)}, "must be score, or score flops"),
        ({"objectives": ()}, "objectives = empty must be"),
        ({"objectives": ("score", "flops"), "search": "optuna"}, r"a trial that is stopped .*now optuna and asha"),
        ({"objectives": ("score", "flops"), "stopping": "none"}, "needs sweep.search = optuna"),
    ],
)
def test_impossible_objectives(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SweepConfig(**values)
