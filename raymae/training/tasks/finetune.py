"""Fine-tuning: a classifier on the labelled clips, and on pseudo-labelled ones.

`LOSSES` and `SCORES` hold what differs between single-label and multi-label clips (`finetune.labels`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.datasets.labels import target_matrix
from raymae.datasets.rows import class_names, rows_of
from raymae.evaluation.metrics import Probabilities, macro_accuracy, mean_average_precision
from raymae.features.augment import apply_coloration, apply_geometry, mixup
from raymae.features.store import iterate
from raymae.inference.classifier import check_teacher, class_probabilities, write_classifier
from raymae.models import AudioClassifier, Cnn, build_classifier, load_encoder
from raymae.models.patches import has_sound
from raymae.models.weights_file import load_weights
from raymae.training.batches.order import mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.spec import StageSpec, labelled_rows
from raymae.training.tasks.linear_probe_init import start_head
from raymae.training.tasks.selection import selection
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def single_loss(logits: Tensor, target: Tensor, smoothing: float, sounding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of logits (B, C) against targets whose rows sum to 1, and the accuracy.

    The mean over the batch, to which clips that are not `sounding` (B,) add nothing.
    """
    loss = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    return torch.where(sounding, loss, 0).mean(), {
        "train_accuracy": (logits.argmax(1) == target.argmax(1)).float().mean()
    }


def multi_loss(logits: Tensor, target: Tensor, smoothing: float, sounding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of logits (B, C) against targets in [0, 1], averaged over clips and classes, and the share
    of the clips whose most probable class is one of theirs (precision at 1); `sounding` as in `single_loss`."""
    smooth = target * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), smooth, reduction="none").mean(1)
    return torch.where(sounding, loss, 0).mean(), {
        "train_precision_at_1": (target.gather(1, logits.argmax(1, keepdim=True)) > 0).float().mean()
    }


def single_score(truth: NDArray[np.float32], probabilities: Probabilities) -> dict[str, float]:
    """Macro accuracy of probabilities (n, C) against one-hot truth (n, C)."""
    return {"val/macro_accuracy": macro_accuracy(truth.argmax(1), probabilities.argmax(1))}


def multi_score(truth: NDArray[np.float32], probabilities: Probabilities) -> dict[str, float]:
    """Mean average precision of probabilities (n, C) against multi-hot truth (n, C)."""
    return {"val/mAP": mean_average_precision(truth, probabilities)}


LOSSES = {"single": single_loss, "multi": multi_loss}
SCORES = {"single": single_score, "multi": multi_score}


class FinetuneTask:
    """A classifier on the labelled clips of the training split."""

    averaged: nn.Module | None = None
    model: nn.Module

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.config, self.seed = spec, spec.classification, spec.seed()
        self.audio = spec.config.audio
        self.class_names = class_names(spec.store.clips, self.config.labels)
        self.order, self.clip_ids = spec.order(), spec.store.clip_ids
        _, self.targets = labelled_rows(spec)
        self.selection = selection(spec.store.clips, self.class_names, self.config.labels)
        self.model = self.network = self._build()
        self.max_seconds: float | None = None
        if spec.time_budget:
            self.max_seconds = spec.config.evaluate.cnn_seconds or spec.time_budget.result()["work_seconds"]
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
            start_head(self.network.to(device), self.spec, rows, self.targets[rows].toarray(), mix(self.seed, 7))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's parameter groups, the head's learning rate scaled."""
        groups = self.network.parameter_groups(self.config.weight_decay, self.config.layer_decay)
        for group in groups:
            if group["name"].startswith("head"):
                group["lr_scale"] *= self.config.head_lr_scale
        return groups

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of augmented, masked clips, and the accuracy or the precision at 1."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        log_mel, valid_frames = batch.to_torch(device)
        target = torch.from_numpy(self.targets[batch.rows].toarray()).to(device)
        settings = self.config.augment, self.audio, generator
        log_mel, valid_frames = apply_geometry(log_mel, valid_frames, *settings)
        sounding = has_sound(log_mel, valid_frames)
        log_mel = apply_coloration(log_mel, valid_frames, *settings, self.spec.responses)
        log_mel, target, valid_frames = mixup(log_mel, target, valid_frames, self.config.augment, generator, sounding)
        logits = model(log_mel, valid_frames, generator)
        return LOSSES[self.config.labels](logits, target, self.config.label_smoothing, sounding)

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
