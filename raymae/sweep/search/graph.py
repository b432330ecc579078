"""What a sweep runs next: a stage that several points share before those points, so that no trial waits for another
while it holds CPUs or a GPU. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from raymae.pipeline.plan.plan import Plan
from raymae.sweep.points import Point, stages_of
from raymae.sweep.space import Values


@dataclass(frozen=True)
class SharedStage:
    """A stage that several points need and that isn't finished."""

    name: str
    """Its name in the plan of `values`."""
    key: str
    values: Values
    """The first point that needs it."""
    points: int
    """Number of points that need it."""

    @property
    def label(self) -> str:
        """Its name and key."""
        return f"{self.name} {self.key}"


@dataclass
class Graph:
    """The stages that points share, and the points; each is handed out once, when what it needs is finished."""

    points: list[Point] = field(default_factory=list)
    stages: dict[str, SharedStage] = field(default_factory=dict)
    """By key, in an order in which each follows what it needs."""
    failed: dict[str, str] = field(default_factory=dict)
    """By key, why a stage failed."""
    _needs: dict[str, set[str]] = field(default_factory=dict)
    """By the key of a stage or point, the shared stages that it needs."""
    _waiting: list[SharedStage | Point] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)

    def add(self, points: Sequence[Point], fewest: int = 2) -> None:
        """Add points; what `fewest` or more of them need, or another point before, is a shared stage."""
        plans = {point.key: point.plan for point in points if point.plan is not None}
        counts = Counter(key for plan in plans.values() for key in unfinished(plan).values())
        stages = []
        for point in points:
            plan = plans.get(point.key)
            found = {} if plan is None else unfinished(plan)
            mine = {name: key for name, key in found.items() if key in self.stages or counts[key] >= fewest}
            for name, key in mine.items():
                if key not in self.stages and plan is not None:
                    self.stages[key] = SharedStage(name, key, point.values, counts[key])
                    stages.append(self.stages[key])
                    self._needs[key] = {mine[other] for other in closure(plan, name) if other in mine} - {key}
            self._needs[point.key] = set(mine.values())
        self.points.extend(points)
        # what most points wait for comes first
        self._waiting = [*sorted(stages, key=lambda stage: -stage.points), *self._waiting, *points]

    @property
    def size(self) -> int:
        """Number of stages and points that are handed out in all."""
        return len(self.stages) + len(self.points)

    @property
    def is_empty(self) -> bool:
        """Whether everything has been handed out."""
        return not self._waiting

    @property
    def ready(self) -> int:
        """Number of shared stages that could run now."""
        stages = [one for one in self._waiting if isinstance(one, SharedStage)]
        return sum(self._needs[one.key] <= self._ended for one in stages)

    @property
    def waiting_points(self) -> list[Point]:
        """The points that haven't been handed out."""
        return [one for one in self._waiting if isinstance(one, Point)]

    def take(self) -> SharedStage | Point | None:
        """The next stage or point whose stages have ended; None while all that are left wait for others."""
        for place, one in enumerate(self._waiting):
            if self._needs[one.key] <= self._ended:
                return self._waiting.pop(place)
        return None

    def end(self, key: str, error: str = "") -> None:
        """Note that a stage has ended; with the reason, if it failed."""
        self._ended.add(key)
        if error:
            self.failed[key] = error

    def failure(self, one: SharedStage | Point) -> str:
        """Why a stage or point can't be run: the failure of a stage that it needs; empty where there is none."""
        reasons = [
            f"{self.stages[key].label} failed: {self.failed[key]}" for key in self._needs[one.key] & set(self.failed)
        ]
        return min(reasons, default="")


def unfinished(plan: Plan) -> dict[str, str]:
    """Keys by name of the stages but the feature store that a plan's final classifier needs, itself left out, and that
    aren't finished."""
    names = [name for name in stages_of(plan) if name not in ("prepare", plan.final)]
    return {name: plan.nodes[name].key for name in names if not plan.nodes[name].reused}


def closure(plan: Plan, name: str) -> set[str]:
    """The stages that a stage needs, those that they need, and so on."""
    found: set[str] = set()
    left = [name]
    while left:
        for other in plan.needs(left.pop()):
            if other not in found:
                found.add(other)
                left.append(other)
    return found
