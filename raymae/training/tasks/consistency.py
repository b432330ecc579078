"""Consistency training: a classifier on labelled clips and, with its own predictions as targets, on unlabelled ones.

Every micro-batch holds both. An unlabelled clip gets the geometric augmentation of fine-tuning, which gives its weak
view. The model's prediction for the weak view, weighted by `raymae.training.tasks.consistency_weights`, is the target
of the strong view: the same crop through another device and with stripes masked.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from raymae.features.augment import apply_coloration, apply_geometry, mixup
from raymae.models import AudioClassifier, Cnn
from raymae.models.patches import has_sound
from raymae.training.batches.order import PairedOrder, mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.parallel import reshard
from raymae.training.spec import StageSpec
from raymae.training.tasks.consistency_weights import METHODS, FreeMatch, consistency_loss
from raymae.training.tasks.finetune import FinetuneTask, single_loss
from raymae.training.worker import Session

log = logging.getLogger(__name__)


class ConsistencyModel(nn.Module):
    """A classifier and the running statistics of its predictions, which are thereby part of every checkpoint."""

    def __init__(self, classifier: AudioClassifier | Cnn, weighting: nn.Module) -> None:
        super().__init__()
        self.classifier, self.weighting = classifier, weighting

    def forward(
        self,
        log_mel: Tensor,
        valid_frames: Tensor,
        generator: torch.Generator | None = None,
        weak: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The logits (B, C) of log-mels (B, T, F), and those of weak views: unmasked, in evaluation mode.

        Args:
            weak: log-mels (n, T, F) and valid frames (n,) of the weak views; their logits (n, C) have no gradient.
        """
        logits = self.classifier(log_mel, valid_frames, generator)
        # after those with a gradient: else autocast would cache copies of the weights without one
        return logits, None if weak is None else predict(self.classifier, *weak)


@torch.no_grad()
def predict(classifier: nn.Module, log_mel: Tensor, valid_frames: Tensor) -> Tensor:
    """Logits (n, C) of a classifier in evaluation mode: no patch is masked."""
    training = classifier.training
    logits: Tensor = classifier.eval()(log_mel, valid_frames)
    classifier.train(training)
    return logits


class ConsistencyTask(FinetuneTask):
    """A classifier on the labelled clips of the training split and its predictions for the unlabelled ones."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.settings = spec.config.consistency
        self.weighting = METHODS[self.settings.method](len(self.class_names), self.settings)
        self.model = ConsistencyModel(self.network, self.weighting)
        self.labelled = self.config.micro_batch_size
        self.paired = isinstance(self.order, PairedOrder)
        if not self.paired:
            log.warning("%s: split train has no unlabelled clip; training on the labelled clips alone", spec.name)

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of labelled clips, augmented as in fine-tuning, and of the strong views of unlabelled ones."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        count, config = self.labelled, self.config
        log_mel, valid_frames = batch.to_torch(device)
        log_mel, valid_frames = apply_geometry(log_mel, valid_frames, config.augment, self.audio, generator)
        target = torch.from_numpy(self.targets[batch.rows[:count]].toarray()).to(device)
        sounding = has_sound(log_mel, valid_frames)
        settings = config.augment, self.audio, generator, self.spec.responses
        labelled = apply_coloration(log_mel[:count], valid_frames[:count], *settings)
        labelled, target, frames = mixup(
            labelled, target, valid_frames[:count], config.augment, generator, sounding[:count]
        )
        weak = log_mel[count:], valid_frames[count:]
        views = self._strong(*weak, generator) if self.paired else weak[0]
        inputs = torch.cat([labelled, views]), torch.cat([frames, weak[1]]), generator
        own = self.paired and self.averaged_teacher is None
        logits, weak_logits = model(*inputs, weak if own else None)
        if self.averaged_teacher is not None and self.paired:
            with torch.no_grad():
                weak_logits, _ = self.averaged_teacher(*weak)
            reshard(self.averaged_teacher)
        loss, metrics = single_loss(logits[:count], target, config.label_smoothing, sounding[:count])
        metrics["supervised_loss"] = loss.detach()
        if weak_logits is None:
            return loss, metrics
        more, found = self._unsupervised(logits[count:], weak_logits.float().softmax(1), sounding[count:])
        return loss + more, metrics | found

    @property
    def averaged_teacher(self) -> nn.Module | None:
        """The EMA of the model, if its predictions are the targets."""
        return self.averaged if self.settings.teacher == "ema" else None

    def _strong(self, log_mel: Tensor, valid_frames: Tensor, generator: torch.Generator) -> Tensor:
        """The strong views (n, T, F) of weak ones: another device, stripes masked, the same frames."""
        settings, responses = self.settings.strong, self.spec.strong_responses
        return apply_coloration(log_mel, valid_frames, settings, self.audio, generator, responses)

    def _unsupervised(
        self, logits: Tensor, probabilities: Tensor, sounding: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the strong views' logits (n, C) against the weak views' probabilities (n, C), and its metrics.

        Clips that are not `sounding` (n,) add nothing.
        """
        metrics = {"threshold": self.weighting.threshold.clone().to(logits.device, torch.float32)}
        weights = self.weighting(probabilities) * sounding
        loss = consistency_loss(logits, probabilities.argmax(1), weights)
        metrics |= {"unsupervised_loss": loss.detach(), "mask_share": weights.mean()}
        total = self.settings.weight * loss
        if isinstance(self.weighting, FreeMatch):
            fairness = self.weighting.fairness(logits, weights)
            metrics["fairness_loss"] = fairness.detach()
            total = total + self.settings.fairness_weight * fairness
        return total, metrics

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Validate the classifier alone."""
        return super().validate(classifier_of(model), session)

    def save(self, model: nn.Module) -> None:
        """Write the classifier folder."""
        super().save(classifier_of(model))


def classifier_of(model: nn.Module) -> nn.Module:
    """The classifier of an unsharded `ConsistencyModel`."""
    assert isinstance(model, ConsistencyModel)
    return model.classifier
