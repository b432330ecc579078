"""A sweep's graph as a search algorithm of Ray Tune, which asks for the next trial whenever there is room for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raymae.config import to_text
from raymae.sweep.points import Point
from raymae.sweep.search.graph import Graph, SharedStage
from raymae.sweep.search.optuna_study import Study
from raymae.sweep.space import Axis, Values
from raymae.sweep.trials.sizes import AVOIDED, WORKERS, Sizes

POINT, STAGE, KEY, REASON = "point", "stage", "key", "reason"
"""In the configuration of a trial of Tune: the point's values; of a shared stage its name and key; why it can't be
run."""
AGAIN = "again"
"""In the last report of a trial that failed: the node where, if the trial is to be tried once more elsewhere."""


def as_text(values: Values, axes: Sequence[Axis]) -> dict[str, Any]:
    """A point for Tune: the values of lists as text, so that no search treats them as numbers."""
    return {axis.path: values[axis.path] if axis.is_range else to_text(values[axis.path]) for axis in axes}


def values_of(config: Mapping[str, Any], axes: Sequence[Axis]) -> Values:
    """The point of a trial's configuration: the inverse of `as_text`."""
    point = config.get(POINT, config)
    return {
        axis.path: point[axis.path]
        if axis.is_range
        else next(value for value in axis.values if to_text(value) == point[axis.path])
        for axis in axes
    }


class GraphSearch(Searcher):
    """Suggests shared stages, and points once their shared stages have ended; a trial that failed once more."""

    def __init__(self, graph: Graph, axes: Sequence[Axis], metric: str, sizes: Sizes) -> None:
        super().__init__(metric=metric, mode="max")
        self.graph, self.axes, self.sizes = graph, axes, sizes
        self._running: dict[str, dict[str, Any]] = {}
        self._again: list[dict[str, Any]] = []

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while all that are left wait for stages that run, or may have to be tried again."""
        asked = self._again.pop(0) if self._again else self.next_trial()
        if asked is None:
            return Searcher.FINISHED if self.is_over and not self._running else None
        self._running[trial_id] = asked
        return asked

    @property
    def is_over(self) -> bool:
        """Whether there will be no other trial than those that are tried again."""
        return self.graph.is_empty

    def next_trial(self) -> dict[str, Any] | None:
        """The configuration of the next stage or point, if one can run."""
        one = self.graph.take()
        return None if one is None else {POINT: as_text(one.values, self.axes)} | self.asked_of(one)

    def asked_of(self, one: SharedStage | Point) -> dict[str, Any]:
        """What a trial is told of its stage or point beside the values."""
        asked: dict[str, Any] = {REASON: self.graph.failure(one)}
        if isinstance(one, SharedStage):
            # those that are ready now run side by side, beside those that run already
            running = 1 + sum(STAGE in other for other in self._running.values())
            return asked | {STAGE: one.name, KEY: one.key, WORKERS: self.sizes.of_stage(self.graph.ready + running)}
        return asked | {WORKERS: self.sizes.workers}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Scores don't change what comes next."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release what waits for a stage, or try a trial again."""
        asked, result = self._running.pop(trial_id, None), result or {}
        if asked is None:
            return
        if result.get(AGAIN):
            self._again.append(asked | {AVOIDED: result[AGAIN]})
        elif key := asked.get(KEY):
            finished = result.get("status") == "finished"
            self.graph.end(key, "" if finished else result.get("error") or "its process died")
        else:
            self.end_point(asked, None if error else result)

    def end_point(self, asked: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """A point has ended, with its last report; None if its process died."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: a sweep resumes from its records and the finished stages."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read back."""


class AskingSearch(GraphSearch):
    """Asks Optuna for points, and runs the stages of each as trials of their own, because the points that will share
    them aren't known yet."""

    def __init__(
        self,
        study: Study,
        plan: Callable[[Values], Point],
        axes: Sequence[Axis],
        metric: str,
        sizes: Sizes,
        trials: int,
    ) -> None:
        super().__init__(Graph(), axes, metric, sizes)
        self.study, self.plan, self.left = study, plan, trials
        self._asked = 0
        self._names: dict[str, list[str]] = defaultdict(list)
        """By the point's key, the names under which the study knows it: it may propose a point twice."""

    @property
    def is_over(self) -> bool:
        """Whether the study isn't asked for more points, and all have been handed out."""
        return self.graph.is_empty and not self.left

    def next_trial(self) -> dict[str, Any] | None:
        """The configuration of the next stage or point, if one can run."""
        while (found := super().next_trial()) is None and self.left and self._has_room:
            name = f"point-{self._asked}"
            point = self.plan(self.study.ask(name))
            self._asked, self.left = self._asked + 1, self.left - 1
            self._names[point.key].append(name)
            self.graph.add([point], fewest=1)
        return found

    @property
    def _has_room(self) -> bool:
        """Whether another point could run beside those that wait: each that is proposed later knows more scores."""
        return len(self.graph.waiting_points) < max(1, self.sizes.room // self.sizes.workers)

    def end_point(self, asked: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """Tell the study the score of a point that it proposed."""
        names = self._names[Point(values_of(asked, self.axes)).key]
        self.study.tell(names.pop(0), result)
