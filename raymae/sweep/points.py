"""The points of a sweep and their plans, all from one configuration and one storage. No Ray.

A trial's stages are those of the pipeline with the point's settings, under the same keys: trials reuse each other's
stages (the feature store, the pre-training of a mask ratio, its teacher), and the pipeline with the best settings
reuses all of them. Test splits are not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import Config, changed, to_dict
from raymae.config.stages import STAGES
from raymae.datasets.recordings import load_clips
from raymae.datasets.rows import fingerprint, group_ids, rows_of
from raymae.pipeline.plan.init_weights import bring, find
from raymae.pipeline.plan.plan import Node, Plan
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder
from raymae.sweep.space import Axis, Values, label
from raymae.training.tasks.selection import METRICS

VERSION = 3
"""Part of a sweep's key; raised when the content of its records changes."""


@dataclass(frozen=True)
class Planner:
    """Plans the points of a sweep: `plan` is the only place where a point becomes a plan. Picklable."""

    config: Config
    """The configuration that the points change."""
    storage: Folder
    clips: dict[str, pa.Table] = field(default_factory=dict)
    """Clip tables by a digest of the settings that decide them."""

    @property
    def metric(self) -> str:
        """The metric by which trials are compared."""
        return METRICS[self.config.finetune.labels]

    def config_of(self, values: Values) -> Config:
        """The configuration of a point; ValueError where its settings contradict each other."""
        return changed(self.config, values)

    def clips_of(self, config: Config) -> pa.Table:
        """The clip table of a configuration; each is read once."""
        key = digest([to_dict(config.data, secret=True), config.audio.front_end(), config.finetune.labels])
        if key not in self.clips:
            self.clips[key] = load_clips(config, self.storage, config.finetune.labels)
        return self.clips[key]

    def plan(self, values: Values) -> Plan:
        """The checked plan of a point, without baselines and ablations, which don't affect the choice.

        Raises ValueError where the settings contradict each other, can't be trained, or change the clips or labels by
        which trials are compared; ValueError or OSError where an input of the stages can't be read.
        """
        config = self.config_of(values)
        config = replace(config, evaluate=replace(config.evaluate, baselines=(), ablation=(), supervised_from=None))
        clips = self.clips_of(config)
        if config.finetune.labels != self.config.finetune.labels:
            raise ValueError("finetune.labels decides the score itself: trials couldn't be compared")
        if val_fingerprint(clips) != val_fingerprint(self.clips_of(self.config)):
            raise ValueError("its split val has other clips or labels: trials couldn't be compared")
        plan = Plan(config, clips, self.storage, "evaluate", find(config, self.storage, "evaluate"))
        check(plan)
        return plan

    def point(self, values: Values) -> Point:
        """A point with its plan, or with the reason why it is refused."""
        try:
            return Point(values, self.plan(values))
        except (ValueError, OSError) as error:
            return Point(values, refused=str(error))


def check(plan: Plan) -> None:
    """Compute the keys of a plan, which reads the inputs of its stages (impulse responses, say).

    Raises ValueError or OSError where one can't be read.
    """
    assert plan.final in plan.nodes


def val_fingerprint(clips: pa.Table) -> str:
    """The fingerprint of the labelled clips of split val; ValueError where there are none,
    or all are of one group."""
    rows = rows_of(clips, "val", labelled=True)
    if not len(rows):
        raise ValueError(
            "no clip of split val has a scene_label, and trials are compared on val alone, never on a test split: "
            "--data.split.val-share 0.2 draws it from the labelled training clips, by group"
        )
    groups = pc.unique(group_ids(clips.take(rows)))
    if len(groups) < 2:
        raise ValueError(
            f"all {len(rows)} labelled clips of split val are of one group, {groups[0].as_py()!r}, and trials are "
            "compared over groups: --data.split.val-share 0.2 draws a val of several from the labelled training clips"
        )
    return fingerprint(clips.take(rows).sort_by("clip_id"), ["clip_id", "scene_label"])


def stages_of(plan: Plan) -> list[str]:
    """The stages that the plan's final classifier needs, in order, itself last."""
    wanted = {plan.final}
    for name in reversed(list(plan.nodes)):
        if name in wanted:
            wanted.update(plan.needs(name))
    return [name for name in plan.nodes if name in wanted]


def shared(plans: Sequence[Plan]) -> list[str]:
    """A line per stage: how often it runs over all trials, and how often it is reused."""
    nodes: dict[str, dict[str, Node]] = {}
    for plan in plans:
        for name in stages_of(plan):
            nodes.setdefault(name, {})[plan.nodes[name].key] = plan.nodes[name]
    lines = []
    for name, found in nodes.items():
        reused = sum(node.reused for node in found.values())
        stage = next(iter(found.values())).stage
        lines.append(f"{name:12s} {len(found) - reused} to run, {reused} reused: {STAGES[stage].does}")
    return lines


def copy_weights(plan: Plan) -> None:
    """Copy the given weights of a plan to the storage, unless they are there."""
    for section, given in plan.given.items():
        if not given.artifact.is_done():
            bring(given, section, plan.config, write=True)


@dataclass(frozen=True)
class Point:
    """One point of a space, with its plan or the reason why there is none."""

    values: Values
    plan: Plan | None = None
    refused: str = ""

    @property
    def key(self) -> str:
        """The point's key within its sweep."""
        return digest(to_dict(dict(self.values)))

    @property
    def label(self) -> str:
        """Its values as text."""
        return label(self.values)


def effective_axes(planner: Planner, axes: Sequence[Axis]) -> list[Axis]:
    """The axes that affect the final classifier.

    Raises ValueError for any other axis that was asked for, and where none is left of the default space.
    """
    start, kept = {axis.path: axis.ends[0] for axis in axes}, []
    for axis in axes:
        points = [planner.point(start | {axis.path: end}) for end in axis.ends]
        plans = [point.plan for point in points if point.plan is not None]
        idle = len(plans) == 2 and plans[0].nodes[plans[0].final].key == plans[1].nodes[plans[1].final].key
        if idle and planner.config.sweep.space:
            raise ValueError(
                f"sweep.space: {axis.path} changes nothing that the stages {', '.join(stages_of(plans[0]))} compute"
            )
        kept += [] if idle else [axis]
    if not kept:
        raise ValueError("the default space changes nothing that this recipe computes: name fields with --sweep.space")
    return kept


def store_values(axes: Sequence[Axis]) -> list[Values]:
    """The combinations of the values that decide the feature store."""
    chosen = [axis for axis in axes if axis.path.startswith(("data.", "audio."))]
    combinations = itertools.product(*(axis.values for axis in chosen))
    return [dict(zip([axis.path for axis in chosen], values, strict=True)) for values in combinations]


def sweep_key(planner: Planner, axes: Sequence[Axis]) -> str:
    """The key of a sweep's results; the number of trials or workers and the like don't change it."""
    plan, sweep = planner.plan({}), planner.config.sweep
    final = plan.nodes[plan.final].key
    return digest([VERSION, [axis.text() for axis in axes], sweep.search, planner.config.seed, sweep.deciding, final])
