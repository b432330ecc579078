"""The inputs that decide the result of a stage, by name, and so its key. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.audio.impulse_responses import Responses, read_responses
from raymae.config import RANDOM, Config, ModelConfig, TrainConfig, to_dict
from raymae.config.stages import CLASSIFIERS, teacher_of, turn_of
from raymae.datasets.rows import class_names, clips_of, fingerprint, rows_of, state_columns
from raymae.datasets.splits.split_file import split_name
from raymae.features.manifest import FORMAT
from raymae.pipeline.plan.cnn_steps import fixed_cnn_steps
from raymae.storage.checksums import digest
from raymae.training.tasks.selection import selection

VERSION = 4
"""Part of every key; raised when what the stages compute, or the name of an input, changes."""

EVALUATION = 5
"""Part of the key of an evaluation alone; raised when what is scored or reported changes."""

TUNING = 2
"""Part of the key of a classifier's training; raised when what it computes changes."""

LABELLING = 2
"""Part of the key of pseudo-labels; raised when the way they are made or reported changes."""

SCHEDULE_ONLY = ("commit_minutes", "keep_commits", "report_steps", "max_bad_steps", "probe_clips")
"""Fields of a training section that only say when something is written or looked at."""
HOW_ONLY = ("micro_batch_size", "compile", "compile_mode", "activation_checkpointing")
"""Fields of a training section that say how a step is computed, not what: they change rounding alone."""
AUGMENTS = {"pretrain": "augment", "finetune": "augment", "consistency": "strong"}
"""The field of every training section that augments."""
OF_STUDENT = ("weight", "labelled_share")
"""Settings of pseudo-labels that the student's training reads."""
AFTER_LABELLING = ("rounds", "student_start", "truth", *OF_STUDENT)
"""Settings of pseudo-labels that don't change the labels of a round."""
LATER = (("", "mask_block"), ("", "mask_block_surplus"), ("latent", "targets"), ("latent", "clip_target"))
"""Settings of a model, the section "" being the model's own, that keys don't name at their defaults."""


@dataclass(frozen=True)
class Asked:
    """A node whose key is asked for."""

    name: str
    needed: tuple[str, ...]
    """The nodes that it reads."""
    keys: Mapping[str, str]
    """The keys of all nodes before it."""
    final: str
    """The node whose classifier is the result of the plan."""

    @property
    def stage(self) -> str:
        """The stage that the node is."""
        return turn_of(self.name)[0]


@dataclass(frozen=True)
class Keys:
    """The keys of one configuration's stages over one table of clips."""

    config: Config
    clips: pa.Table
    given: Mapping[str, str]
    """By section, the key of the weights that its `init_from` names."""

    def key(self, node: Asked) -> str:
        """The key of a node: a hash of its name and of its named inputs."""
        return digest([VERSION, node.name, INPUTS[node.stage](self, node)])

    @cached_property
    def responses(self) -> dict[str, Responses | None]:
        """By training section its impulse responses, None where it uses none; ValueError for files that hold none."""
        found = {}
        for section, name in AUGMENTS.items():
            augment = getattr(getattr(self.config, section), name)
            used = augment.response_share > 0
            read = augment.responses, self.config.audio, f"{section}.{name}.responses", augment.responses_by
            found[section] = read_responses(*read) if used else None
        return found

    def offsets(self, section: str) -> NDArray[np.float32] | None:
        """A section's impulse responses as offsets (n, F) of the log-mel."""
        responses = self.responses[section]
        return None if responses is None else responses.offsets

    def convolved(self, section: str) -> NDArray[np.float32] | None:
        """A section's impulse responses (n, taps), where waveforms are convolved with them."""
        responses, augment = self.responses[section], getattr(getattr(self.config, section), AUGMENTS[section])
        return responses.waveforms if responses and augment.responses_by == "convolution" else None

    def training(self, section: str) -> dict[str, Any]:
        """A section's settings that decide the result of training; responses by their content, weights by theirs."""
        config = self.config
        chosen = getattr(config, section)
        # init_from is a path: the key of the weights there is an input of its own
        skipped = (*SCHEDULE_ONLY, *HOW_ONLY, "init_from", "mixing_group")
        values = {key: value for key, value in to_dict(chosen).items() if key not in skipped}
        if isinstance(chosen, TrainConfig):
            values["group_size"] = chosen.group_size
        name = AUGMENTS[section]
        del values[name]["responses"], values[name]["response_p"]
        if (responses := self.responses[section]) is not None:
            share = getattr(getattr(config, section), name).response_share
            values[name] |= {"responses": responses.digests, "response_p": share}
        if config.audio.device == "gpu":  # the log-mels of its clips differ by rounding from those of the CPU
            values["device"] = "gpu"
        if section == "pretrain":  # the others shuffle fully
            values["chunk"] = config.data.shuffle_chunk
        return {"seed": config.seed, **values}

    def given_weights(self, section: str) -> str | None:
        """The key of the weights that a section starts from; None where its `init_from` is not set."""
        source = getattr(self.config, section).init_from
        if not source:
            return None
        return RANDOM if source == RANDOM else self.given[section]

    def fingerprint(self, splits: list[str], *columns: str) -> str:
        """16 digits of what the columns hold for the clips of some splits."""
        return fingerprint(clips_of(self.clips, splits), [*state_columns(self.clips), *columns])


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """A model's settings. Those that came later are left out at their defaults, so that older artifacts keep their
    keys."""
    values, defaults = to_dict(model), to_dict(ModelConfig())
    for section, name in LATER:
        mine, others = (values[section], defaults[section]) if section else (values, defaults)
        if mine[name] == others[name]:
            del mine[name]
    return dict(values)


# The inputs of every stage -------------------------------------------------------------------------------------------


def prepare_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of the feature store."""
    data = keys.config.data
    return {
        "format": FORMAT,
        "store": data.store,
        "audio": keys.config.audio.front_end(),
        "max_bad_share": data.max_bad_share,
        "clips": fingerprint(keys.clips, keys.clips.column_names),
    }


def pretrain_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of pre-training."""
    config = keys.config
    return {
        "audio": config.audio.front_end(),
        "model": model_settings(config.model),
        "training": keys.training("pretrain"),
        "clips": keys.fingerprint(["pool"] if config.pretrain.pool_only else ["pool", "train"], "source", "weight"),
        "init_from": keys.given_weights("pretrain"),
    }


def classifier_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of a classifier's training."""
    config = keys.config
    train = clips_of(keys.clips, ["train"])
    labelled = train.filter(pc.is_valid(train["scene_label"]))
    return {
        "version": TUNING,
        "audio": config.audio.front_end(),
        "model": model_settings(config.model),
        "training": keys.training("finetune"),
        "clips": fingerprint(labelled, [*state_columns(labelled), "scene_label"]),
        "stages": {name: node.keys[name] for name in node.needed if name != "prepare"},
        "init_from": keys.given_weights("finetune"),
        "selected_by": _selected_by(keys),
    }


def cnn_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of the CNN baseline."""
    evaluate = keys.config.evaluate
    settings = {name: getattr(evaluate, name) for name in ("cnn", "cnn_lr", "cnn_crop_seconds")}
    return classifier_inputs(keys, node) | settings | {"cnn_steps": fixed_cnn_steps(keys.config, keys.clips)}


def student_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of a student's training."""
    return classifier_inputs(keys, node) | {name: getattr(keys.config.pseudo_label, name) for name in OF_STUDENT}


def consistency_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of consistency training."""
    unlabelled = keys.clips.take(rows_of(keys.clips, "train", labelled=False))
    clips = fingerprint(unlabelled, state_columns(unlabelled))
    return classifier_inputs(keys, node) | {"consistency": keys.training("consistency"), "unlabelled": clips}


def pseudo_label_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of a round of pseudo-labels."""
    settings = to_dict(keys.config.pseudo_label)
    return {
        "version": LABELLING,
        "settings": {name: value for name, value in settings.items() if name not in AFTER_LABELLING},
        "seed": keys.config.seed,
        "clips": keys.fingerprint(["train", "val"], "scene_label", "split", "group"),
        # read where the teacher's accuracy is estimated
        "encoder": node.keys.get("pretrain") or keys.given_weights("finetune"),
        "teacher": node.keys[teacher_of(node.name)],
    }


def evaluate_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of an evaluation."""
    config = keys.config
    return {
        "version": EVALUATION,
        "audio": config.audio.front_end(),
        "baselines": config.evaluate.baselines,
        "clips": fingerprint(keys.clips, keys.clips.column_names),
        "models": {name: key for name, key in node.keys.items() if name.startswith(CLASSIFIERS)},
        "final": node.final,
        "split": split_name(config.data.split),
        "probe_clips": config.evaluate.probe_clips,
        "played_mistakes": config.evaluate.played_mistakes,
        "ablation": config.evaluate.ablation,
    }


def register_inputs(keys: Keys, node: Asked) -> dict[str, Any]:
    """Of a registered version."""
    tracking = keys.config.tracking
    return {
        "classifier": node.keys[node.final],
        "evaluation": node.keys["evaluate"],
        "uri": tracking.uri,
        "registered_model": tracking.registered_model,
        "alias": tracking.alias,
    }


def _selected_by(keys: Keys) -> str | None:
    """The clips of val, where they select the weights that fine-tuning keeps."""
    labels = keys.config.finetune.labels
    if not selection(keys.clips, class_names(keys.clips, labels), labels).best:
        return None
    val = clips_of(keys.clips, ["val"])
    return fingerprint(val.filter(pc.is_valid(val["scene_label"])), [*state_columns(val), "scene_label", "group"])


INPUTS: dict[str, Callable[[Keys, Asked], dict[str, Any]]] = {
    "prepare": prepare_inputs,
    "pretrain": pretrain_inputs,
    "finetune": classifier_inputs,
    "cnn": cnn_inputs,
    "pseudo_label": pseudo_label_inputs,
    "student": student_inputs,
    "consistency": consistency_inputs,
    "evaluate": evaluate_inputs,
    "register": register_inputs,
}
"""By stage, the named inputs of its key."""
