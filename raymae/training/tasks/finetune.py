"""Fine-tuning: a classifier on the labelled clips, and on pseudo-labelled ones.

`LOSSES` and `SCORES` hold what differs between single-label and multi-label clips (`finetune.labels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.datasets.labels import target_matrix
from raymae.datasets.rows import Rows, class_names, rows_of
from raymae.evaluation.metrics import Probabilities, macro_accuracy, mean_average_precision
from raymae.features.augment import Drawn, apply_device, apply_mixup, apply_stripes, draw_coloration, draw_mixup
from raymae.features.draws import Draws, mix
from raymae.features.store import iterate
from raymae.inference.classifier import check_teacher, class_probabilities, write_classifier
from raymae.models import AudioClassifier, Cnn, build_classifier, load_encoder
from raymae.models.masking import kept_of
from raymae.models.patches import Grid
from raymae.models.weights_file import load_weights
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import DeviceBatch, HostBatch, Transfer
from raymae.training.spec import StageSpec, label_weights, labelled_rows, probe_weights, shared_targets
from raymae.training.tasks.base import Counts
from raymae.training.tasks.chosen_inputs import inputs_of
from raymae.training.tasks.inputs import Frames, Sound, find_sound
from raymae.training.tasks.linear_probe_init import start_head
from raymae.training.tasks.selection import selection
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def single_loss(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B,) of logits (B, C) against targets whose rows sum to 1, and 1 where the prediction is right."""
    loss = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    return loss, (logits.argmax(1) == target.argmax(1)).float()


def multi_loss(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy (B,) of logits (B, C) against targets in [0, 1], averaged over the classes, and 1 where the
    most probable class is one of the clip's (precision at 1)."""
    smooth = target * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none").mean(1)
    return loss, (target.gather(1, logits.argmax(1, keepdim=True)) > 0).float()[:, 0]


def single_score(truth: NDArray[np.float32], probabilities: Probabilities) -> dict[str, float]:
    """Macro accuracy of probabilities (n, C) against one-hot truth (n, C)."""
    return {"val/macro_accuracy": macro_accuracy(truth.argmax(1), probabilities.argmax(1))}


def multi_score(truth: NDArray[np.float32], probabilities: Probabilities) -> dict[str, float]:
    """Mean average precision of probabilities (n, C) against multi-hot truth (n, C)."""
    return {"val/mAP": mean_average_precision(truth, probabilities)}


LOSSES = {"single": single_loss, "multi": multi_loss}
HITS = {"single": "train_accuracy", "multi": "train_precision_at_1"}


def masks_of(drawn: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The arguments kept and drop of `AudioClassifier.forward`; none for a CNN."""
    return (kept_of(drawn), drawn.get("drop")) if "ids_keep" in drawn else ()


SCORES = {"single": single_score, "multi": multi_score}


class FinetuneTask:
    """A classifier on the labelled clips of the training split."""

    averaged: nn.Module | None = None
    counted: tuple[str, ...] = ("clips",)
    divisors = 1
    model: nn.Module

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.config, self.seed = spec, spec.classification, spec.seed()
        self.audio = spec.config.audio
        self.inputs = inputs_of(spec, self.config.augment)
        self.class_names = class_names(spec.store.clips, self.config.labels)
        self.order, self.clip_ids = spec.order(), spec.store.clip_ids
        self.always_masks = spec.always_masks
        self.targets = shared_targets(labelled_rows(spec)[1], spec.store.tables)
        self.label_weights = label_weights(spec)
        self.selection = selection(spec.store.clips, self.class_names, self.config.labels)
        self.model = self.network = self._build()
        per_epoch = self.order.rows_per_epoch / self.config.global_batch_size
        self.head_steps = 0 if spec.cnn else round(self.config.head_epochs * per_epoch)

    def _build(self) -> AudioClassifier | Cnn:
        """The classifier with its initial weights."""
        spec, config = self.spec, self.spec.config
        model = build_classifier(config.audio, config.model, self.config, len(self.class_names), cnn=spec.cnn)
        if spec.classifier:
            check_teacher(spec.classifier, self.class_names)
            load_weights(model, spec.classifier.read_checked("model.safetensors"))
        elif spec.encoder and isinstance(model, AudioClassifier):
            load_encoder(model, load_tensors(spec.encoder.read_checked("model.safetensors")))
        return model

    def begin(self, device: torch.device) -> None:
        """Initialise the head with a logistic regression on the frozen encoder, if `head_init` says so."""
        logistic = self.config.head_init == "logistic" and not self.spec.classifier
        if logistic and isinstance(self.network, AudioClassifier):
            rows, _ = labelled_rows(self.spec)
            targets, counts = self.targets[rows].toarray(), probe_weights(self.spec)[rows]
            start_head(self.network.to(device), self.spec, rows, targets, counts, mix(self.seed, 7))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's parameter groups, the head's learning rate scaled."""
        groups = self.network.parameter_groups(self.config.weight_decay, self.config.layer_decay)
        for group in groups:
            if group["name"].startswith("head"):
                group["lr_scale"] *= self.config.head_lr_scale
        return groups

    def prepare(self, clips: Clips, transfer: Transfer) -> tuple[HostBatch, Counts]:
        """Decide augmentation, mixup and structured masks of some clips; count those that aren't silent, by their
        labels' weights."""
        draws = Draws(mix(self.seed, 5), clips.places, clips.group_size)
        frames = self.inputs.take(clips, draws, draws, transfer)
        sound = self._find_sound(frames)
        drawn, valid = self._prepare_labelled(clips.rows, draws, frames, sound)
        drawn["counted"] = clips.weight * sound.sounding * drawn.pop("label_weight")
        drawn |= self._draw_masks(valid, sound.grid, draws)
        return HostBatch(frames.log_mel, drawn, int(clips.places[0])), drawn["counted"].sum(keepdims=True, dtype=float)

    def _find_sound(self, frames: Frames) -> Sound:
        patch_size, silence = self.spec.config.model.patch_size, self.audio.silence
        if isinstance(self.network, Cnn):
            return find_sound(frames, patch_size, silence)
        starts = self.network.segment_starts(frames.log_mel.shape[1])
        return find_sound(frames, patch_size, silence, self.network.segment, starts)

    def _prepare_labelled(
        self, rows: Rows, draws: Draws, frames: Frames, sound: Sound
    ) -> tuple[Drawn, NDArray[np.bool_]]:
        """Coloration, mixup and targets of the first `rows` (n,) of the frames, and their valid patches (n, S, L)."""
        config, count = self.config.augment, slice(len(rows))
        before = frames.valid_frames[count]
        gain = None if frames.gain is None else frames.gain[count]
        drawn = draw_coloration(before, config, self.audio, draws, self.spec.responses, gain)
        # a clip's weight beside its target, so that both are mixed alike
        target = np.column_stack([self.targets[rows].toarray(), self.label_weights[rows]])
        target, after, mixed = draw_mixup(frames.mixed_targets(target), before, config, draws, sound.sounding[count])
        sounds = sound.valid[count]
        if mixed:
            uses = (mixed["mixup_weight"] < 1)[:, None, None]
            sounds = sounds | (uses & sounds[mixed["mixup_partner"]])
        valid = replace(sound, valid=sounds).without_hidden(drawn)
        drawn |= mixed | {"target": target[:, :-1], "label_weight": target[:, -1]}
        return drawn | {"frames_before": before, "valid_frames": after}, valid

    def _draw_masks(self, valid: NDArray[np.bool_], grid: Grid, draws: Draws) -> Drawn:
        if isinstance(self.network, Cnn):
            return {}
        return self.network.draw(valid, grid, draws, always=self.always_masks)

    def training_step(
        self, model: nn.Module, batch: DeviceBatch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of augmented, masked clips, and the accuracy or the precision at 1."""
        drawn = batch.drawn
        if isinstance(self.network, Cnn):  # timm's may draw; a pass is one mixing group then
            torch.manual_seed(mix(self.seed, 4, batch.key) >> 1)
        log_mel = self._labelled(batch.log_mel.float(), drawn)
        logits = model(log_mel, drawn["valid_frames"], *masks_of(drawn), hidden=drawn.get("frame_stripe"))
        return self._supervised(logits, drawn["target"], drawn["counted"], totals["clips"])

    def _labelled(self, log_mel: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """The classifier's input of labelled clips; what is masked is the mixture, as in Audio-MAE's code."""
        mixed = apply_mixup(apply_device(log_mel, drawn["frames_before"], drawn), drawn)
        return apply_stripes(mixed, drawn["valid_frames"], drawn)

    def _supervised(
        self, logits: Tensor, target: Tensor, counted: Tensor, total: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of the loss and the hits of labelled clips, by what each is `counted` (B,)."""
        labels = self.config.labels
        loss, hits = LOSSES[labels](logits, target, self.config.label_smoothing)
        return (loss * counted).sum() / total, {HITS[labels]: (hits * counted).sum() / total}

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """Nothing to check: labels can't collapse."""

    def after_update(self, share: float) -> None:
        """Nothing to do: only the loop's EMA follows the weights."""

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Macro accuracy or mAP on the validation split; each clip once over all ranks."""
        clips = self.spec.store.clips
        rows = rows_of(clips, "val", labelled=True)
        if not len(rows):
            return {}
        own = rows[session.rank :: session.world_size]
        parts = [
            class_probabilities(model, log_mel, valid_frames, self.config, self.audio, session.torch_device)
            for _, log_mel, valid_frames in iterate(self.spec.store, own, 64)
        ]
        found = np.concatenate(parts) if parts else np.zeros((0, len(self.class_names)), np.float32)
        probabilities = np.empty((len(rows), len(self.class_names)), np.float32)
        for rank, part in enumerate(session.gather(found)):
            probabilities[rank :: session.world_size] = part
        truth = target_matrix(clips["scene_label"].take(rows), self.class_names, self.config.labels).toarray()
        return SCORES[self.config.labels](truth, probabilities)

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """No figures beside the learning curves."""
        return {}

    def save(self, model: nn.Module) -> None:
        """Write the classifier folder."""
        config = self.spec.config
        write_classifier(
            self.spec.artifact,
            model,
            class_names=self.class_names,
            audio=config.audio,
            model_config=config.model,
            finetune=self.config,
            cnn=self.spec.cnn,
        )
