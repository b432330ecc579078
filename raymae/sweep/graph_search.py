"""A sweep's graph as a search algorithm of Ray Tune, which asks for the next trial whenever there is room for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raymae.config import to_text
from raymae.sweep.graph import Graph, SharedStage
from raymae.sweep.space import Axis, Values

POINT, STAGE, KEY, REASON = "point", "stage", "key", "reason"
"""In the configuration of a trial of Tune: the point's values; of a shared stage its name and key; why it can't be
run."""


def as_text(values: Values, axes: Sequence[Axis]) -> dict[str, Any]:
    """A point for Tune: the values of lists as text, so that no search treats them as numbers."""
    return {axis.path: values[axis.path] if axis.is_range else to_text(values[axis.path]) for axis in axes}


class GraphSearch(Searcher):
    """Suggests shared stages, and points once their shared stages have ended."""

    def __init__(self, graph: Graph, axes: Sequence[Axis], metric: str) -> None:
        super().__init__(metric=metric, mode="max")
        self.graph, self.axes = graph, axes
        self._running: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next stage or point; None while all that are left wait for stages that run."""
        one = self.graph.take()
        if one is None:
            return Searcher.FINISHED if self.graph.is_empty else None
        asked: dict[str, Any] = {POINT: as_text(one.values, self.axes), REASON: self.graph.failure(one)}
        if isinstance(one, SharedStage):
            self._running[trial_id] = one.key
            asked |= {STAGE: one.name, KEY: one.key}
        return asked

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Scores don't change what comes next."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release what waits for a stage."""
        if key := self._running.pop(trial_id, None):
            status = (result or {}).get("status")
            self.graph.end(key, "" if status == "finished" else (result or {}).get("error") or "its process died")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a sweep resumes from its records and the finished stages."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read back."""
