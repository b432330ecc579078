"""What a job will do: the stages up to its target, their keys, and which stand already. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from raymae.config import RANDOM, Ablation, Config
from raymae.config.stages import (
    FINETUNED,
    LEARNERS,
    NEEDS,
    ORDER,
    REPEATED,
    Target,
    place,
    round_name,
    teacher_of,
    turn_of,
)
from raymae.datasets.rows import class_names, clips_of, fingerprint, rows_of
from raymae.features.shard import all_exist
from raymae.features.store import SHARDS, FeatureStore
from raymae.features.streaming import CHECKED, StreamedClips
from raymae.pipeline.plan.keys import Keys
from raymae.pseudo_labels.truth import read_truth
from raymae.storage.folder import Folder, digest
from raymae.tracking.uri import REGISTRY
from raymae.training.spec import Kind, StageSpec


@dataclass(frozen=True)
class Node:
    """One stage of a plan."""

    name: str
    key: str
    artifact: Folder
    reused: bool
    stage: str
    """The stage that it is: its name, or what an ablation repeats of it (finetune_pool is a finetune)."""


@dataclass(frozen=True)
class Given:
    """Weights from outside that a section's stages start from (its `init_from`)."""

    key: str
    """Names their content."""
    artifact: Folder
    """Their copy in the storage, `model.safetensors` in our own names, which every worker can read."""


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
        if self.target in ("pseudo_label", "consistency") and self.config.finetune.labels == "multi":
            what = "pseudo-labels are" if self.target == "pseudo_label" else "consistency training is"
            raise ValueError(
                f"finetune.labels = multi: {what} for clips of one class; jobs/finetune.py, jobs/evaluate.py "
                "and jobs/pipeline.py go without and take the fine-tuned classifier for the final one"
            )
        if self.target == "consistency" and not self.has_unlabelled:
            raise ValueError(
                "consistency training needs unlabelled clips, and split train has none: leave some scene_label empty, "
                "or set --data.split.labelled-share to hide some"
            )
        pools = {"pool", "pool_train"}.intersection(self.config.evaluate.ablation)
        if self.target in ("evaluate", "register") and pools and not len(self.rows(["pool"])):
            raise ValueError(
                f"evaluate.ablation = {', '.join(sorted(pools))}: there is no clip of split pool to pre-train on; "
                "data.pool_tables bring some"
            )

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are unlabelled training clips."""
        return len(rows_of(self.clips, "train", labelled=False)) > 0

    @property
    def learners(self) -> tuple[str, ...]:
        """The stages that learn from unlabelled clips after the teacher; none where clips may have several classes."""
        uses = self.config.unlabelled if self.config.finetune.labels == "single" else ()
        return tuple(self.last(LEARNERS[use]) for use in uses)

    @property
    def final(self) -> str:
        """The stage whose classifier is the result."""
        return ("finetune", *self.learners)[-1]

    def last(self, stage: str) -> str:
        """The node of a stage: of one that rounds repeat, the last."""
        return round_name(stage, self.config.pseudo_label.rounds if stage in REPEATED else 1)

    def continues(self, name: str) -> bool:
        """Whether a student goes on from that of the round before."""
        stage, turn = turn_of(name)
        return stage == "student" and turn > 1 and self.config.pseudo_label.student_start == "continued"

    def needs(self, name: str) -> tuple[str, ...]:
        """What a stage reads; given weights take the place of pre-training."""
        stage, turn = turn_of(name)
        more = {"evaluate": self.learners, "register": (self.final,)}.get(name, ())
        needed = (*NEEDS[stage], *more)
        if name == "consistency" and self.config.consistency.start == "pretrain":
            needed = ("prepare", "pretrain")
        own = {"pseudo_label": round_name("pseudo_label", turn)}
        if stage == "pseudo_label":
            own["finetune"] = teacher_of(name)
        if self.continues(name):
            own["pretrain"] = teacher_of(name)
        needed = tuple(own.get(one, one) for one in needed)
        return tuple(one for one in needed if one != "pretrain" or not self.config.finetune.init_from)

    @cached_property
    def names(self) -> list[str]:
        """The stages, in the order of their running."""
        wanted: set[str] = set()

        def add(name: str) -> None:
            for needed in self.needs(name):
                add(needed)
            if name == "evaluate" and "cnn" in self.config.evaluate.baselines:
                add("cnn")
            wanted.add(name)

        add(self.last(self.target))
        return sorted(wanted, key=lambda name: place(name, ORDER))

    @cached_property
    def keys(self) -> Keys:
        """What says the stages' keys."""
        return Keys(self.config, self.clips, {section: given.key for section, given in self.given.items()})

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every stage with its key and whether it stands."""
        nodes: dict[str, Node] = {}
        kept_weights: dict[str, str] = {}
        for name in self.names:
            if name in ("pseudo_label", "evaluate"):  # before them, so that one group of workers trains all
                nodes |= self._ablated(nodes)
            stage = turn_of(name)[0]
            keys = {one: kept_weights.get(one, node.key) for one, node in nodes.items()}
            key = kept_weights[name] = self.keys.key(name, self.needs(name), keys, self.final)
            if stage == "pseudo_label" and self.truth is not None:
                # the truth changes what is said of the labels, and neither them nor what is learned from them
                key = digest([key, fingerprint(self.truth, self.truth.column_names)])
            artifact = self.storage / f"artifacts/{stage}/{key}"
            reused = artifact.is_done() and self._exists(name, artifact)
            nodes[name] = Node(name, key, artifact, reused, stage)
        return nodes

    @cached_property
    def truth(self) -> pa.Table | None:
        """True classes of unlabelled clips (clip_id, scene_label), where `pseudo_label.truth` tells some."""
        url = self.config.pseudo_label.truth
        return None if url is None else read_truth(url, self.clips, class_names(self.clips))

    @cached_property
    def ablations(self) -> dict[str, Plan]:
        """By ablation, the plan whose pre-training and fine-tuning it takes; only where this one evaluates."""
        asked = self.config.evaluate.ablation if "evaluate" in self.names else ()
        found: dict[str, Plan] = {}
        for name in asked:
            given = {**self.given, **({"finetune": self.given["supervised"]} if name == "supervised" else {})}
            found[name] = Plan(ablated(self.config, name), self.clips, self.storage, "finetune", given)
        return found

    def _ablated(self, own: Mapping[str, Node]) -> dict[str, Node]:
        """The stages that the ablations add to some that there are; equal ones are the same."""
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
        """What is evaluated, in the order of the report; the plan's result last."""
        trained = [name for name, node in self.nodes.items() if node.stage in FINETUNED]
        places = {"cnn": 0, "finetune": 2}  # the ablations between baseline and result
        places |= {turn_of(name)[0]: 3 + number for number, name in enumerate(self.learners)}
        trained.sort(key=lambda name: (places.get(turn_of(name)[0], 1), turn_of(name)[1]))
        return {name: self.nodes[name].artifact for name in trained}

    def _exists(self, name: str, artifact: Folder) -> bool:
        """Whether what a finished stage refers to is there too: the shards of a store, a model in the registry."""
        if name != "prepare":
            return self._in_registry(name)
        if self.config.data.verify:
            return False
        try:
            manifest = artifact.read_json("manifest.json")
        except (OSError, ValueError):  # lost or damaged: written anew
            return False
        return all_exist(self.shards, manifest)

    def _in_registry(self, name: str) -> bool:
        """False for a model that was registered in a local registry which is gone."""
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
        return "pipeline" if self.target == "register" else self.target

    @property
    def to_do(self) -> list[str]:
        """The stages that have to run."""
        return [name for name, node in self.nodes.items() if not node.reused]

    @cached_property
    def store(self) -> FeatureStore:
        """What the plan reads clips from (once it stands): the feature store, or the audio itself."""
        prepared, data = self.nodes["prepare"].artifact, self.config.data
        if data.store == "none":
            return StreamedClips(prepared, self.shards, data.file_timeout)
        return FeatureStore(prepared, self.shards)

    @property
    def shards(self) -> Folder:
        """Where the shards of `prepare` lie."""
        return self.storage / (SHARDS if self.config.data.store == "parquet" else CHECKED)

    def rows(self, splits: Sequence[str]) -> pa.Table:
        """Clips of some splits; "test" stands for all that begin with it."""
        return clips_of(self.clips, splits)

    def start(self, name: str) -> Folder | None:
        """What a training stage takes its encoder's first weights from, if they aren't random."""
        section = "pretrain" if name == "pretrain" else "finetune"
        if name == "cnn":
            return None
        if source := getattr(self.config, section).init_from:
            return None if source == RANDOM else self.given[section].artifact
        return None if name == "pretrain" else self.nodes["pretrain"].artifact

    def spec(self, name: str) -> StageSpec:
        """A training stage as its workers get it."""
        node = self.nodes
        stage, turn = turn_of(name)
        if (plan := self.plan_of(name)) is not self:
            return replace(plan.spec(node[name].stage), name=name, repeats=node[name].stage)
        kinds: dict[str, Kind] = {"pretrain": "pretrain", "consistency": "consistency"}
        kind = kinds.get(name, "finetune")
        responses = self.keys.responses["finetune" if kind == "consistency" else kind]
        strong = self.keys.responses["consistency"] if kind == "consistency" else None
        taught = kind == "consistency" and self.config.consistency.start == "finetune"
        return StageSpec(
            name=name,
            kind=kind,
            config=self.config,
            artifact=node[name].artifact,
            store=self.store,
            encoder=None if taught or self.continues(name) else self.start(name),
            classifier=node[teacher_of(name)].artifact if taught or self.continues(name) else None,
            pseudo_labels=node[round_name("pseudo_label", turn)].artifact if stage == "student" else None,
            cnn=self.config.evaluate.cnn if name == "cnn" else None,
            pace=node["finetune"].artifact if name == "cnn" else None,
            responses=None if responses is None else responses.offsets,
            strong_responses=None if strong is None else strong.offsets,
        )


def ablated(config: Config, name: Ablation) -> Config:
    """The same run with another start of its fine-tuning; everything else, its seed too, stays."""
    train, tune = config.pretrain, config.finetune
    if name in ("pool", "pool_train"):
        train, tune = replace(train, pool_only=name == "pool"), replace(tune, init_from=None)
    else:
        start = RANDOM if name == "scratch" else config.evaluate.supervised_from
        train, tune = replace(train, init_from=None), replace(tune, init_from=start)
    # the ablated run is a run of its own, which asks for none
    evaluate = replace(config.evaluate, ablation=(), supervised_from=None)
    return replace(config, pretrain=train, finetune=tune, evaluate=evaluate)
