"""The verdict on an evaluation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.evaluation.verdict import LEVEL, Standing, chance, decide, verdict
from raymae.pipeline.evaluate import score_predictions
from tests.support.predictions import NAMES, PREDICTIONS, make_guesses


def report(difference: float, p_value: float, **splits: float) -> dict[str, Any]:
    """A report of an SVM, a teacher and a student that is ahead of the SVM by `difference` on test, of 12 groups."""
    ahead = {"val": 0.3, "test": difference} | splits
    found = {"groups": 12, "p_value": p_value, "p_holm": p_value, "first": 0.5}
    by_class = {name: {"clips": 10} for name in NAMES}

    def scores(values: dict[str, float]) -> dict[str, Any]:
        one = {"confusion": [], "by_class": by_class, "macro_accuracy_ci": [0.4, 0.6]}
        return {split: one | {"macro_accuracy": value} for split, value in values.items()}

    svm = {split: 0.5 - one for split, one in ahead.items()}
    return {
        "labels": "single",
        "note": None,
        "metrics": {
            "svm": scores(svm),
            "finetune": scores(dict.fromkeys(ahead, 0.9)),
            "student": scores(dict.fromkeys(ahead, 0.5)),
        },
        "comparisons": {
            "svm": {split: found | {"value": one} for split, one in ahead.items()},
            "finetune": {split: found | {"value": -0.4} for split in ahead},
        },
    }


def test_a_network_behind_a_baseline_is_not_deployed() -> None:
    found = verdict(report(-0.05, 0.25))
    assert found["sentence"] == (
        "“MAE, with pseudo-labels” is 5.0 points of macro accuracy behind “SVM on log-mel statistics” on test "
        "(p = 0.25, 12 groups): don't deploy it."
    )
    assert (found["decision"], found["standings"][0]["baseline"]) == ("reject", "svm")


def test_of_several_splits_each_is_named() -> None:
    found = verdict(report(0.05, 0.01, test_unseen=-0.02))
    assert found["decision"] == "undecided"
    assert "5.0 points of macro accuracy ahead of" in found["sentence"]
    assert "and 2.0 points behind it on test_unseen (p = 0.01, 12 groups): decide by the split" in found["sentence"]


def test_without_a_baseline_nothing_is_known() -> None:
    found = verdict(report(0.1, 0.01) | {"comparisons": {}})
    assert (found["decision"], found["standings"]) == ("unknown", [])


def test_what_limits_it_is_said() -> None:
    one = report(0.1, 0.01) | {"note": "Synthetic"}
    one["metrics"] = {name: {"val": found["val"]} for name, found in one["metrics"].items()}
    one["metrics"]["student"]["val"]["macro_accuracy_ci"] = [0.3, 0.6]
    first, second, third = verdict(one)["notes"]
    assert first == "Synthetic."
    assert "no test split" in second
    assert third == "On val it is not surely better than guessing (0.333)."


differences = st.tuples(st.floats(-1, 1), st.floats(0, 1))


@given(st.lists(differences, min_size=1, max_size=4))
def test_only_what_is_ahead_everywhere_and_surely_somewhere_is_deployed(values: list[tuple[float, float]]) -> None:
    standings = [
        Standing(split="test", baseline="svm", score=0.5, difference=one, p_value=p, groups=9) for one, p in values
    ]
    deployed = all(one > 0 for one, _ in values) and any(p <= LEVEL for _, p in values)
    assert (decide(standings) == "deploy") == deployed
    behind = any(one <= 0 for one, _ in values) and not any(one > 0 and p <= LEVEL for one, p in values)
    assert (decide(standings) == "reject") == behind


def test_it_follows_from_a_scored_result() -> None:
    tables = {"svm": make_guesses(0.3, 1), "student": make_guesses(0.95, 2)}
    found = score_predictions(tables, NAMES, "single", PREDICTIONS["svm"]) | {"note": None}
    one = verdict(found)
    assert one["decision"] == "deploy"
    assert [standing["split"] for standing in one["standings"]] == ["test_seen", "test_unseen"]
    assert one["standings"][0]["difference"] == pytest.approx(found["comparisons"]["svm"]["test_seen"]["value"])
    assert chance(found["metrics"]["svm"]["val"]) == pytest.approx(1 / 3)
