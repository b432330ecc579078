"""Fine-tuning: a classifier on the labelled clips, and on pseudo-labelled ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.figure import Figure
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.augment import augment, mixup
from raymae.metrics import macro_accuracy
from raymae.models import build_classifier, load_encoder
from raymae.order import mix
from raymae.predict import class_probabilities, write_classifier
from raymae.selection import METRIC, selection
from raymae.session import Session
from raymae.spec import StageSpec, class_names, labelled_rows, rows_of
from raymae.store import iterate
from raymae.windows import MicroBatch


class FinetuneTask:
    """Cross-entropy on the labelled clips of the training split."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.config, self.seed = spec, spec.config.finetune, spec.seed()
        self.audio = spec.config.audio
        self.class_names = class_names(spec.store.clips)
        self.selection = selection(spec.store.clips, self.class_names)
        self.order = spec.order()
        rows, labels = labelled_rows(spec)
        self.label_of_row = np.full(len(spec.store), -1, np.int64)
        self.label_of_row[rows] = labels
        self.model = build_classifier(
            spec.config.audio, spec.config.model, self.config, len(self.class_names), cnn=spec.cnn
        )
        if spec.encoder:
            load_encoder(self.model, load_tensors(spec.encoder.read_bytes("model.safetensors")))
        self.max_seconds: float | None = spec.pace.result()["work_seconds"] if spec.pace else None
        per_epoch = self.order.rows_per_epoch / self.config.global_batch_size
        self.head_steps = 0 if spec.cnn else round(self.config.head_epochs * per_epoch)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's groups, the head's learning rate scaled."""
        groups = self.model.parameter_groups(self.config.weight_decay, self.config.layer_decay)
        for group in groups:
            if group["name"].startswith("head"):
                group["lr_scale"] *= self.config.head_lr_scale
        return groups

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of augmented, masked clips."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        log_mel, valid_frames = batch.to_torch(device)
        labels = torch.from_numpy(self.label_of_row[batch.rows]).to(device)
        target = F.one_hot(labels, len(self.class_names)).float()
        log_mel, valid_frames = augment(log_mel, valid_frames, self.config.augment, self.audio, generator)
        log_mel, target, valid_frames = mixup(log_mel, target, valid_frames, self.config.augment, generator)
        logits = model(log_mel, valid_frames, generator)
        loss = F.cross_entropy(logits, target, label_smoothing=self.config.label_smoothing)
        return loss, {"train_accuracy": (logits.argmax(1) == target.argmax(1)).float().mean()}

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Macro accuracy on the validation split; each clip once over all ranks."""
        clips = self.spec.store.clips
        rows = rows_of(clips, "val", labelled=True)
        if not len(rows):
            return {}
        mine = rows[session.rank :: session.world_size]
        guesses = [
            class_probabilities(model, log_mel, valid_frames, self.config, self.audio, session.torch_device)
            for _, log_mel, valid_frames in iterate(self.spec.store, mine, 64)
        ]
        found = np.concatenate(guesses) if guesses else np.zeros((0, len(self.class_names)), np.float32)
        probabilities = np.empty((len(rows), len(self.class_names)), np.float32)
        for rank, part in enumerate(session.gather(found)):
            probabilities[rank :: session.world_size] = part
        number = {name: index for index, name in enumerate(self.class_names)}
        truth = np.array([number[name] for name in clips["scene_label"].take(rows).to_pylist()])
        return {METRIC: macro_accuracy(truth, probabilities.argmax(1))}

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """None: its curves say it all."""
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
            finetune=config.finetune,
            cnn=self.spec.cnn,
        )
