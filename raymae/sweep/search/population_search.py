"""A population as a search algorithm of Ray Tune: a generation's segments, once all of the one before have ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raymae.sweep.points import Point
from raymae.sweep.results import Record
from raymae.sweep.search.graph import Graph
from raymae.sweep.search.graph_search import POINT, REASON, STAGE, GraphSearch, as_text, values_of
from raymae.sweep.search.population import Population, Segment
from raymae.sweep.space import Axis
from raymae.sweep.trials.sizes import WORKERS, Sizes

SEGMENT = "segment"
"""In the configuration of a trial of Tune: the fields of its `Segment`."""


def key_of(config: Mapping[str, Any], axes: Sequence[Axis]) -> str:
    """The key of a trial's record: its segment's, or its point's."""
    return str(config[SEGMENT]["key"]) if SEGMENT in config else Point(values_of(config, axes)).key


class PopulationSearch(GraphSearch):
    """Suggests the stages before the last one, then the segments of one generation after the other."""

    def __init__(self, base: Point, population: Population, metric: str, sizes: Sizes, known: Sequence[Record]) -> None:
        """`base` is the point of the configuration itself, whose stages all segments share; `known` has the records
        of an earlier start."""
        super().__init__(Graph(), population.axes, metric, sizes)
        self.graph.add([base], fewest=1)
        self.population = population
        self.scores = {one.key: one.score for one in known if one.score is not None}
        self._latest = max((one.lineage["generation"] for one in known if one.score is not None), default=0)
        self.generation: list[Segment] = []
        self._waiting: list[Segment] = []
        self._open: set[str] = set()
        self._begun, self._failure = False, ""

    @property
    def is_over(self) -> bool:
        """Whether the last segment of the last generation has been handed out, or no member is left."""
        return self._begun and not self._waiting and not self._open and self._is_last

    @property
    def _is_last(self) -> bool:
        return not self.generation or self.generation[0].is_last

    def next_trial(self) -> dict[str, Any] | None:
        """The configuration of the next stage or segment, if one can run."""
        if not self._begun:
            asked = self.next_stage()
            if asked is None or STAGE in asked:
                return asked
            self._begun, self._failure = True, asked[REASON]
            self._begin(self.population.first())
        while not self._waiting and not self._open and not self._is_last:
            self._begin(self.population.following(self.generation, self.scores))
        if not self._waiting:
            return None
        one = self._waiting.pop(0)
        values = as_text(one.values, self.axes)
        return {POINT: values, SEGMENT: asdict(one), REASON: self._failure, WORKERS: self.sizes.workers}

    def next_stage(self) -> dict[str, Any] | None:
        """The next shared stage; the base point in its place once all have ended."""
        one = self.graph.take()
        return None if one is None else {POINT: {}, **self.asked_of(one)}

    def _begin(self, generation: list[Segment]) -> None:
        """Begin a generation. A member that failed in one is tried again by a later start, but not once the next
        generation has scores: those decided without it."""
        self.generation = generation
        is_decided = bool(generation) and generation[0].generation < self._latest
        self._waiting = [] if is_decided else [one for one in generation if one.key not in self.scores]
        self._open = {one.key for one in self._waiting}

    def end_point(self, asked: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """Note the score of a segment; without one its member has ended."""
        score, key = (result or {}).get(self.metric), asked[SEGMENT]["key"]
        if score is not None and not math.isnan(score):
            self.scores[key] = score
        self._open.discard(key)
