"""The result of `raymae.pipeline.evaluate.evaluate`, as reports read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymae.evaluation.scores import Evaluation

Report = Mapping[str, Any]


def final(report: Report) -> tuple[str, Evaluation]:
    """The final model of the run, which is the last one, and its scores by split."""
    return list(report["metrics"].items())[-1]
