"""The plan of a job: the stages up to its target, their keys, and which exist already. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import pyarrow as pa

from raymae.config import RANDOM, Ablation, Config
from raymae.config.stages import (
    CLASSIFIERS,
    STAGES,
    Target,
    place,
    requires,
    round_name,
    stage_of_use,
    teacher_of,
    turn_of,
)
from raymae.datasets.rows import class_names, clips_of, fingerprint, rows_of
from raymae.features.shard import all_exist, asks_again
from raymae.features.store import SHARDS, FeatureStore
from raymae.features.streaming import CHECKED, StreamedClips, WaveformClips
from raymae.pipeline.plan.cnn_steps import cnn_steps
from raymae.pipeline.plan.keys import Asked, Keys
from raymae.pseudo_labels.truth import read_truth
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder
from raymae.storage.mapped import SharedTables
from raymae.storage.range_cache import RangeCache
from raymae.tracking.uri import REGISTRY
from raymae.training.spec import StageSpec


@dataclass(frozen=True)
class Node:
    """One stage of a plan."""

    name: str
    key: str
    artifact: Folder
    reused: bool
    stage: str
    """The stage that it is: of an ablation's node (finetune_pool) the stage that is repeated (finetune)."""
    result_key: str
    """The key that later stages read: of pseudo-labels the same with and without `pseudo_label.truth`, which is only
    reported."""


@dataclass(frozen=True)
class Given:
    """Weights from outside that a section's stages start from (its `init_from`)."""

    key: str
    """Names their content."""
    artifact: Folder
    """Their copy in the storage, `model.safetensors` in raymae's names, which every worker can read."""


@dataclass(frozen=True)
class Plan:
    """The stages up to `target`, for one configuration and one table of clips."""

    config: Config
    clips: pa.Table
    storage: Folder
    target: Target
    given: Mapping[str, Given] = field(default_factory=dict)
    """By section, what its `init_from` names (`weights.find`)."""

    def __post_init__(self) -> None:
        subject = STAGES[self.target].single_label_only
        if subject and self.config.finetune.labels == "multi":
            raise ValueError(
                f"finetune.labels = multi: {subject} for single-label clips; jobs/finetune.py, jobs/evaluate.py and "
                "jobs/pipeline.py skip them, and the fine-tuned classifier is the final one"
            )
        if self.target == "consistency" and not self.has_unlabelled:
            raise ValueError(
                "consistency training needs unlabelled clips, and split train has none: leave some scene_label empty, "
                "or set --data.split.labelled-share to hide some"
            )
        if "pretrain" in self.names and not len(self.rows(self.pretrained_on)):
            raise ValueError(
                f"pre-training has no clip: it takes those of {' and '.join(self.pretrained_on)}, labelled or not "
                f"(pretrain.pool_only = {self.config.pretrain.pool_only}); data.pool_tables bring some"
            )
        pools = {"pool", "pool_train"}.intersection(self.config.evaluate.ablation)
        if requires(self.target, "evaluate") and pools and not len(self.rows(["pool"])):
            raise ValueError(
                f"evaluate.ablation = {', '.join(sorted(pools))}: there is no clip of split pool to pre-train on; "
                "data.pool_tables bring some"
            )

    @property
    def pretrained_on(self) -> list[str]:
        """The splits whose clips pre-training takes."""
        return ["pool"] if self.config.pretrain.pool_only else ["pool", "train"]

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are unlabelled training clips."""
        return len(rows_of(self.clips, "train", labelled=False)) > 0

    @property
    def learners(self) -> tuple[str, ...]:
        """The nodes that train on unlabelled clips after the teacher; none for multi-label clips."""
        uses = self.config.unlabelled if self.config.finetune.labels == "single" else ()
        return tuple(self.last(stage_of_use(use)) for use in uses)

    @property
    def final(self) -> str:
        """The node whose classifier is the result."""
        return ("finetune", *self.learners)[-1]

    def last(self, stage: str) -> str:
        """The node of a stage; the last round's, where rounds repeat it."""
        return round_name(stage, self.config.pseudo_label.rounds if STAGES[stage].repeated else 1)

    def continues(self, name: str) -> bool:
        """Whether a student starts from the student of the round before."""
        stage, turn = turn_of(name)
        return stage == "student" and turn > 1 and self.config.pseudo_label.student_start == "continued"

    def needs(self, name: str) -> tuple[str, ...]:
        """The nodes that a node reads; given weights take the place of pre-training."""
        stage, turn = turn_of(name)
        needed = STAGES[stage].needs
        if stage == "consistency" and self.config.consistency.start == "pretrain":
            needed = ("prepare", "pretrain")
        elif stage == "evaluate":
            needed = (*needed, *self.learners, *(("cnn",) if "cnn" in self.config.evaluate.baselines else ()))
        elif stage == "register":
            needed = (*needed, self.final)
        in_round = {"pseudo_label": round_name("pseudo_label", turn)}
        if stage == "pseudo_label":
            in_round["finetune"] = teacher_of(name)
        if self.continues(name):
            in_round["pretrain"] = teacher_of(name)
        nodes = [in_round.get(one, one) for one in needed]
        return tuple(one for one in nodes if one != "pretrain" or not self.config.finetune.init_from)

    @cached_property
    def names(self) -> list[str]:
        """The plan's own nodes, in the order in which they run."""
        wanted: set[str] = set()

        def add(name: str) -> None:
            for needed in self.needs(name):
                add(needed)
            wanted.add(name)

        add(self.last(self.target))
        return sorted(wanted, key=place)

    @cached_property
    def keys(self) -> Keys:
        """The keys of the stages."""
        return Keys(self.config, self.clips, {section: given.key for section, given in self.given.items()})

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every node by its name: the ablations' run before the first that reads classifiers, in one worker group."""
        nodes: dict[str, Node] = {}
        first = list(takewhile(lambda name: not STAGES[turn_of(name)[0]].reads_classifiers, self.names))
        for name in first:
            nodes[name] = self._node(name, nodes)
        nodes |= self._ablated(nodes)
        for name in self.names[len(first) :]:
            nodes[name] = self._node(name, nodes)
        return nodes

    def _node(self, name: str, before: Mapping[str, Node]) -> Node:
        stage = turn_of(name)[0]
        keys = {other: node.result_key for other, node in before.items()}
        key = result_key = self.keys.key(Asked(name, self.needs(name), keys, self.final))
        if stage == "pseudo_label" and self.truth is not None:
            # the truth changes the report, and neither the labels nor the classifiers trained on them
            key = digest([key, fingerprint(self.truth, self.truth.column_names)])
        artifact = self.storage / f"artifacts/{stage}/{key}"
        return Node(name, key, artifact, artifact.is_done() and self._exists(name, artifact), stage, result_key)

    @cached_property
    def truth(self) -> pa.Table | None:
        """True classes of unlabelled clips (clip_id, scene_label) from `pseudo_label.truth`; None where it is unset."""
        url = self.config.pseudo_label.truth
        return None if url is None else read_truth(url, self.clips, class_names(self.clips))

    @cached_property
    def ablations(self) -> dict[str, Plan]:
        """By ablation, the plan of its pre-training and fine-tuning; only where this plan evaluates."""
        asked = self.config.evaluate.ablation if "evaluate" in self.names else ()
        found: dict[str, Plan] = {}
        for name in asked:
            given = {**self.given, **({"finetune": self.given["supervised"]} if name == "supervised" else {})}
            found[name] = Plan(ablated(self.config, name), self.clips, self.storage, "finetune", given)
        return found

    def _ablated(self, own: Mapping[str, Node]) -> dict[str, Node]:
        """The nodes that the ablations add to the plan's own; equal stages are not trained twice."""
        known, found = {node.key for node in own.values()}, {}
        for ablation, plan in self.ablations.items():
            for stage in ("pretrain", "finetune"):
                node = plan.nodes.get(stage)
                if node is not None and node.key not in known:
                    known.add(node.key)
                    found[f"{stage}_{ablation}"] = replace(node, name=f"{stage}_{ablation}")
        return found

    @cached_property
    def ablation_models(self) -> dict[str, str]:
        """By ablation, the node of its classifier: the plan's own where it fine-tunes from the same."""
        names = {node.key: name for name, node in self.nodes.items()}
        return {ablation: names[plan.nodes["finetune"].key] for ablation, plan in self.ablations.items()}

    def plan_of(self, name: str) -> Plan:
        """The plan that a node is a stage of: this one or an ablation's."""
        ablation = name.removeprefix(f"{self.nodes[name].stage}_")
        return self.ablations.get(ablation, self)

    @cached_property
    def classifiers(self) -> dict[str, Folder]:
        """The classifiers to evaluate, in the order of the report: baselines, ablations, fine-tuned, result last."""
        trained = [name for name, node in self.nodes.items() if node.stage in CLASSIFIERS]
        learners = [turn_of(name)[0] for name in self.learners]
        places = {"cnn": 0, "finetune": 2} | {stage: 3 + number for number, stage in enumerate(learners)}
        trained.sort(key=lambda name: (places.get(turn_of(name)[0], 1), turn_of(name)[1]))
        return {name: self.nodes[name].artifact for name in trained}

    def _exists(self, name: str, artifact: Folder) -> bool:
        """Whether a finished stage's references exist too: the shards of a store, a model in the registry."""
        if name != "prepare":
            return self._in_registry(name)
        if self.config.data.verify:
            return False
        try:
            manifest = artifact.read_json("manifest.json")
        except (OSError, ValueError):  # lost or damaged: written anew
            return False
        if any(asks_again(entry, self.config.data.file_timeout) for entry in manifest.get("again", [])):
            return False
        return all_exist(self.shards, manifest)

    def _in_registry(self, name: str) -> bool:
        """False for a model whose local registry was removed."""
        return name != "register" or self.config.tracking.uri is not None or self.storage.exists(REGISTRY)

    @cached_property
    def key(self) -> str:
        """The key of the whole plan: of the run that refers to its stages. The same for every MLflow."""
        keys = {name: node.key for name, node in self.nodes.items() if name != "register"}
        return digest([self.config.recipe, self.target, keys])

    @cached_property
    def run_folder(self) -> Folder:
        """Where the run keeps its configuration, report and result."""
        return self.storage / f"runs/{self.config.recipe or 'run'}-{self.job}-{self.key}"

    @property
    def job(self) -> str:
        """The name of the job that runs it."""
        return STAGES[self.target].job or self.target

    @property
    def to_do(self) -> list[str]:
        """The nodes that have to run."""
        return [name for name, node in self.nodes.items() if not node.reused]

    @cached_property
    def store(self) -> FeatureStore:
        """The clips as training reads them, once prepared: the feature store, or a stream from the audio."""
        prepared, data, compute = self.nodes["prepare"].artifact, self.config.data, self.config.compute
        tables = SharedTables(compute.cache)
        if data.store == "none":
            kind = WaveformClips if self.config.audio.device == "gpu" else StreamedClips
            return kind(prepared, self.shards, data.file_timeout, tables=tables)
        cache = RangeCache(compute.cache, int(compute.cache_gb * 1e9)) if compute.cache else None
        return FeatureStore(prepared, self.shards, tables=tables, cache=cache)

    @property
    def shards(self) -> Folder:
        """The folder of the shards of `prepare`."""
        return self.storage / (SHARDS if self.config.data.store == "parquet" else CHECKED)

    def rows(self, splits: Sequence[str]) -> pa.Table:
        """Clips of some splits; "test" means all whose names begin with it."""
        return clips_of(self.clips, splits)

    def start(self, name: str) -> Folder | None:
        """The weights that a training stage's encoder starts from; None for random ones."""
        section = "pretrain" if name == "pretrain" else "finetune"
        if name == "cnn":
            return None
        if source := getattr(self.config, section).init_from:
            return None if source == RANDOM else self.given[section].artifact
        return None if name == "pretrain" else self.nodes["pretrain"].artifact

    def spec(self, name: str) -> StageSpec:
        """A training stage as its workers get it."""
        node = self.nodes[name]
        if (plan := self.plan_of(name)) is not self:
            return replace(plan.spec(node.stage), name=name, repeats=node.stage)
        kind = STAGES[node.stage].kind
        assert kind is not None, f"{name} trains nothing"
        from_teacher = self.continues(name) or (kind == "consistency" and self.config.consistency.start == "finetune")
        section = "pretrain" if kind == "pretrain" else "finetune"
        return StageSpec(
            name=name,
            kind=kind,
            config=self.config,
            artifact=node.artifact,
            store=self.store,
            encoder=None if from_teacher else self.start(name),
            classifier=self.nodes[teacher_of(name)].artifact if from_teacher else None,
            responses=self.keys.offsets(section),
            response_waveforms=self.keys.convolved(section),
            **self._own_inputs(name),
        )

    def _own_inputs(self, name: str) -> dict[str, Any]:
        """The fields of a specification that single stages have."""
        stage, turn = turn_of(name)
        if stage == "cnn":
            return {"cnn": self.config.evaluate.cnn, "steps": cnn_steps(self.config, self.clips)}
        if stage == "student":
            return {"pseudo_labels": self.nodes[round_name("pseudo_label", turn)].artifact}
        if stage == "consistency":
            return {"strong_responses": self.keys.offsets("consistency")}
        return {}


def ablated(config: Config, name: Ablation) -> Config:
    """The same run with another start of its fine-tuning, or without its steps; all else, its seed too, is the same."""
    train, tune = config.pretrain, config.finetune
    if name == "frozen":  # a step at a rate of 0
        tune = replace(tune, head_init="logistic", lr=0.0, min_lr=0.0, epochs=1e-9, warmup_epochs=0.0)
    elif name in ("pool", "pool_train"):
        train, tune = replace(train, pool_only=name == "pool"), replace(tune, init_from=None)
    else:
        start = RANDOM if name == "scratch" else config.evaluate.supervised_from
        train, tune = replace(train, init_from=None), replace(tune, init_from=start)
    # the ablated run has no ablations of its own
    evaluate = replace(config.evaluate, ablation=(), supervised_from=None)
    return replace(config, pretrain=train, finetune=tune, evaluate=evaluate)
