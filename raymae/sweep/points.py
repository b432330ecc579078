"""What the trials of a sweep stand on: one configuration, one storage, and a plan for every point. No Ray.

A trial's stages are those of the pipeline with the point's settings, under the same keys: trials find what others made
(the feature store, the pre-training of a mask ratio, its teacher), and the pipeline with the best settings finds all of
it. A test split is never looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from raymae.config import Config, changed, to_dict
from raymae.datasets.clips import load, own_folder
from raymae.datasets.rows import fingerprint, rows_of
from raymae.pipeline.plan.init_weights import bring, find
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder, digest
from raymae.sweep.space import Axis, Values, label
from raymae.training.tasks.selection import METRICS

VERSION = 2
"""Part of a sweep's key; a change of what its records hold raises it."""


@dataclass(frozen=True)
class Ground:
    """The configuration that a sweep changes, and the clips that it may ask for; picklable."""

    config: Config
    storage: Folder
    clips: dict[str, pa.Table] = field(default_factory=dict)
    """Clip tables by what decides them."""

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return METRICS[self.config.finetune.labels]

    def config_of(self, values: Values) -> Config:
        """The configuration of a point; ValueError where the settings don't go together."""
        return changed(self.config, values)

    def clips_of(self, config: Config) -> pa.Table:
        """The clip table of a configuration; each is read once."""
        key = digest([to_dict(config.data, secret=True), config.finetune.labels])
        if key not in self.clips:
            folder = own_folder(self.storage)
            self.clips[key] = load(config.data, folder, config.finetune.labels)
        return self.clips[key]

    def plan(self, values: Values) -> Plan:
        """The plan of a point, without baselines and ablations, which choose nothing.

        Raises ValueError where the settings don't go together, can't be trained, or change what trials are judged on.
        """
        config = self.config_of(values)
        config = replace(config, evaluate=replace(config.evaluate, baselines=(), ablation=(), supervised_from=None))
        clips = self.clips_of(config)
        if config.finetune.labels != self.config.finetune.labels:
            raise ValueError("finetune.labels decides the score itself: trials couldn't be compared")
        if scored(clips) != scored(self.clips_of(self.config)):
            raise ValueError("its split val has other clips or labels: trials couldn't be compared")
        return Plan(config, clips, self.storage, "evaluate", find(config, self.storage, "evaluate"))


def scored(clips: pa.Table) -> str:
    """What names the labelled clips of split val; ValueError where there are none."""
    rows = rows_of(clips, "val", labelled=True)
    if not len(rows):
        raise ValueError(
            "no clip of split val has a scene_label, and trials are compared by val alone, never by a test split: "
            "--data.split.val-share 0.2 draws it from the labelled training clips, by groups"
        )
    return fingerprint(clips.take(rows).sort_by("clip_id"), ["clip_id", "scene_label"])


def stages_of(plan: Plan) -> list[str]:
    """The stages that the plan's final classifier needs, in their order, itself last."""
    wanted = {plan.final}
    for name in reversed(list(plan.nodes)):
        if name in wanted:
            wanted.update(plan.needs(name))
    return [name for name in plan.nodes if name in wanted]


def bring_weights(plan: Plan) -> None:
    """Copy the weights that the plan is given, where it lacks them."""
    for section, given in plan.given.items():
        if not given.artifact.is_done():
            bring(given, section, plan.config, write=True)


@dataclass(frozen=True)
class Point:
    """One point of a space: its plan, or why there is none."""

    values: Values
    plan: Plan | None = None
    refused: str = ""

    @property
    def key(self) -> str:
        """Names the point within its sweep."""
        return digest(to_dict(dict(self.values)))

    @property
    def label(self) -> str:
        """For people."""
        return label(self.values)


def look_at(ground: Ground, values: Values) -> Point:
    """A point with its plan; one that is refused says why."""
    try:
        return Point(values, plan_of(ground, values))
    except (ValueError, OSError) as error:
        return Point(values, refused=str(error))


def plan_of(ground: Ground, values: Values) -> Plan:
    """The plan of a point. ValueError and OSError say why there can be none."""
    plan = ground.plan(values)
    plan.nodes  # noqa: B018  what the keys need is read here: impulse responses, say
    return plan


def interleaved(points: Sequence[Point]) -> list[Point]:
    """Points in an order in which neighbours share little: those that run side by side wait for one another less."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(first_training(point), []).append(point)
    rounds = itertools.zip_longest(*groups.values())
    return [point for one in rounds for point in one if point is not None]


def first_training(point: Point) -> str:
    """The key of the first stage after the feature store, mostly the pre-training."""
    if point.plan is None:
        return ""
    return next((point.plan.nodes[name].key for name in stages_of(point.plan) if name != "prepare"), "")


def effective(ground: Ground, axes: Sequence[Axis]) -> list[Axis]:
    """The axes that change something which the final classifier depends on.

    Raises ValueError for another one that was asked for, and where none is left of the default space.
    """
    start, kept = {axis.path: axis.ends[0] for axis in axes}, []
    for axis in axes:
        points = [look_at(ground, start | {axis.path: end}) for end in axis.ends]
        plans = [point.plan for point in points if point.plan is not None]
        idle = len(plans) == 2 and plans[0].nodes[plans[0].final].key == plans[1].nodes[plans[1].final].key
        if idle and ground.config.sweep.space:
            raise ValueError(
                f"sweep.space: {axis.path} changes nothing that the stages {', '.join(stages_of(plans[0]))} compute"
            )
        kept += [] if idle else [axis]
    if not kept:
        raise ValueError("the default space changes nothing that this recipe computes: say what to try, --sweep.space")
    return kept


def fronts(axes: Sequence[Axis]) -> list[Values]:
    """The combinations of what decides the feature store."""
    chosen = [axis for axis in axes if axis.path.startswith(("data.", "audio."))]
    combinations = itertools.product(*(axis.values for axis in chosen))
    return [dict(zip([axis.path for axis in chosen], values, strict=True)) for values in combinations]


def sweep_key(ground: Ground, axes: Sequence[Axis]) -> str:
    """Names what a sweep finds: the same for another number of trials, workers or the like."""
    plan, sweep = ground.plan({}), ground.config.sweep
    stopping: Mapping[str, Any] = {"grace": sweep.grace, "reduction": sweep.reduction} if sweep.early_stopping else {}
    final = plan.nodes[plan.final].key
    return digest([VERSION, [axis.text() for axis in axes], sweep.search, ground.config.seed, stopping, final])
