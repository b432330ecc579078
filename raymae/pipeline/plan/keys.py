"""What decides the result of a stage, and so its key. Neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.impulse_responses import Responses, read_responses
from raymae.config import RANDOM, Config, to_dict
from raymae.config.stages import FINETUNED, teacher_of, turn_of
from raymae.datasets.rows import FILE, class_names, clips_of, fingerprint, rows_of
from raymae.datasets.splits.split_file import split_name
from raymae.features.manifest import FORMAT
from raymae.storage.folder import digest
from raymae.training.tasks.selection import selection

VERSION = 2
"""Part of every key; a change of what the stages compute raises it."""

EVALUATION = 3
"""Part of the key of an evaluation alone; a change of what is scored or said raises it."""

LABELLING = 2
"""Part of the key of pseudo-labels; a change of how they are made or reported raises it."""

SCHEDULE_ONLY = ("commit_minutes", "keep_commits", "report_steps", "max_bad_steps", "probe_clips")
"""Fields of a training section that don't change its result."""

AUGMENTS = {"pretrain": "augment", "finetune": "augment", "consistency": "strong"}
"""The field of every training section that augments."""


@dataclass(frozen=True)
class Keys:
    """The keys of one configuration's stages over one table of clips."""

    config: Config
    clips: pa.Table
    given: Mapping[str, str]
    """By section, the key of the weights that its `init_from` names."""

    def key(self, name: str, needed: Sequence[str], keys: Mapping[str, str], final: str) -> str:
        """The key of the node `name`, which reads `needed`, from those of all nodes before it.

        `final` is the node whose classifier is the result.
        """
        return digest([VERSION, name, self._inputs(name, needed, keys, final)])

    @cached_property
    def responses(self) -> dict[str, Responses | None]:
        """The impulse responses of every training section that uses some; ValueError where they are none."""
        found = {}
        for section, name in AUGMENTS.items():
            augment = getattr(getattr(self.config, section), name)
            used = augment.response_share > 0
            setting = f"{section}.{name}.responses"
            found[section] = read_responses(augment.responses, self.config.audio, setting) if used else None
        return found

    def _inputs(self, name: str, needed: Sequence[str], keys: Mapping[str, str], final: str) -> Any:
        """Everything that decides the result of a stage."""
        config, stage = self.config, turn_of(name)[0]
        audio = to_dict(config.audio)
        if name == "prepare":
            clips = fingerprint(self.clips, self.clips.column_names)
            return [FORMAT, config.data.store, audio, config.data.max_bad_share, clips]
        if name == "pretrain":
            splits = ["pool"] if config.pretrain.pool_only else ["pool", "train"]
            clips = fingerprint(clips_of(self.clips, splits), [*FILE, "source", "weight"])
            return [audio, to_dict(config.model), self._training("pretrain"), clips, *self._given("pretrain")]
        if stage in FINETUNED:
            return self._finetuned(name, audio, [keys[key] for key in needed if key != "prepare"])
        if stage == "pseudo_label":
            return self._labelled(keys, keys[teacher_of(name)])
        if name == "evaluate":
            models = {name: key for name, key in keys.items() if name.startswith(FINETUNED)}
            clips = fingerprint(self.clips, self.clips.column_names)
            said = [EVALUATION, split_name(config.data.split), config.evaluate.probe_clips, config.evaluate.ablation]
            said += [final] if final == "consistency" else []
            return [audio, config.evaluate.baselines, clips, models, *said]
        tracking = config.tracking
        return [keys[final], keys["evaluate"], tracking.uri, tracking.registered_model, tracking.alias]

    def _finetuned(self, name: str, audio: dict[str, Any], needed: list[str]) -> Any:
        """Of a classifier's training, from the keys of what it reads."""
        config, evaluate = self.config, self.config.evaluate
        train = clips_of(self.clips, ["train"])
        clips = fingerprint(train.filter(pc.is_valid(train["scene_label"])), [*FILE, "scene_label"])
        others = needed + self._given("finetune")
        cnn = (
            [evaluate.cnn, evaluate.cnn_lr, evaluate.cnn_crop_seconds, evaluate.cnn_seconds] if name == "cnn" else None
        )
        more: list[Any] = [*self._chosen_by()]
        if name == "consistency":
            unlabelled = self.clips.take(rows_of(self.clips, "train", labelled=False))
            more += [self._training("consistency"), fingerprint(unlabelled, FILE)]
        return [audio, to_dict(config.model), self._training("finetune"), cnn, clips, others, *more]

    def _labelled(self, keys: Mapping[str, str], teacher: str) -> Any:
        """Of a round of pseudo-labels."""
        config = self.config
        clips = fingerprint(clips_of(self.clips, ["train", "val"]), [*FILE, "scene_label", "split", "group"])
        start = keys.get("pretrain", self._given("finetune"))  # read where the teacher's accuracy is estimated
        settings = to_dict(config.pseudo_label)
        for other in ("rounds", "student_start", "truth"):  # what follows the labels, or is said of them
            del settings[other]
        return [LABELLING, settings, config.seed, clips, start, teacher]

    def _training(self, section: str) -> dict[str, Any]:
        """What decides the result of training, from a section of the configuration; responses by what they hold."""
        config = self.config
        skipped = (*SCHEDULE_ONLY, "init_from")  # a path; the key of what lies there is an input of its own
        values = {key: value for key, value in to_dict(getattr(config, section)).items() if key not in skipped}
        name = AUGMENTS[section]
        del values[name]["responses"], values[name]["response_p"]
        if (responses := self.responses[section]) is not None:
            share = getattr(getattr(config, section), name).response_share
            values[name] |= {"responses": responses.digests, "response_p": share}
        return {"seed": config.seed, "chunk": config.data.shuffle_chunk, **values}

    def _given(self, section: str) -> list[str]:
        """The key of the weights that a section starts from, if it is given some."""
        source = getattr(self.config, section).init_from
        return [source if source == RANDOM else self.given[section]] if source else []

    def _chosen_by(self) -> list[str]:
        """The clips of val, where they choose the weights that fine-tuning hands on."""
        labels = self.config.finetune.labels
        if not selection(self.clips, class_names(self.clips, labels), labels).best:
            return []
        val = clips_of(self.clips, ["val"])
        labelled = val.filter(pc.is_valid(val["scene_label"]))
        return [fingerprint(labelled, [*FILE, "scene_label", "group"])]
