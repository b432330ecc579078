"""Consistency training: a classifier on labelled clips and, by its own guesses, on unlabelled ones.

Every micro-batch holds both. An unlabelled clip is cut as fine-tuning cuts; what the model says of the cut as it is
becomes, weighted by `raymae.training.tasks.consistency_weights`, the target of the same cut through another device and
with stripes masked.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from raymae.features.augment import mixup, recut, restyle
from raymae.models import AudioClassifier, Cnn
from raymae.training.batches.order import PairedOrder, mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.parallel import reshard
from raymae.training.spec import StageSpec
from raymae.training.tasks.consistency_weights import METHODS, FreeMatch, consistency_loss
from raymae.training.tasks.finetune import FinetuneTask, single_loss
from raymae.training.worker import Session

log = logging.getLogger(__name__)


class ConsistencyModel(nn.Module):
    """A classifier and the running statistics of its guesses, which are so part of every commit."""

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
        """The logits (B, C) of log-mels (B, T, F), and those of weak views: whole clips, in evaluation mode.

        Args:
            weak: log-mels (n, T, F) and valid frames (n,) of the weak views; their logits (n, C) have no gradient.
        """
        logits = self.classifier(log_mel, valid_frames, generator)
        # after those with a gradient: autocast would keep copies of the weights that have none
        return logits, None if weak is None else guess(self.classifier, *weak)


@torch.no_grad()
def guess(classifier: nn.Module, log_mel: Tensor, valid_frames: Tensor) -> Tensor:
    """Logits (n, C) of a classifier as it is used, not trained: nothing of the clips is masked."""
    training = classifier.training
    logits: Tensor = classifier.eval()(log_mel, valid_frames)
    classifier.train(training)
    return logits


class ConsistencyTask(FinetuneTask):
    """A classifier on the labelled clips of the training split and what it guesses of the unlabelled ones."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.settings = spec.config.consistency
        self.weighting = METHODS[self.settings.method](len(self.class_names), self.settings)
        self.model = ConsistencyModel(self.network, self.weighting)
        self.labelled = self.config.micro_batch_size
        self.paired = isinstance(self.order, PairedOrder)
        if not self.paired:
            log.warning("%s: split train has no unlabelled clip; it trains on the labels alone", spec.name)

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of labelled clips, augmented as in fine-tuning, and of the strong views of unlabelled ones."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        count, config = self.labelled, self.config
        log_mel, valid_frames = batch.to_torch(device)
        log_mel, valid_frames = recut(log_mel, valid_frames, config.augment, self.audio, generator)
        target = torch.from_numpy(self.targets[batch.rows[:count]].toarray()).to(device)
        chosen = config.augment, self.audio, generator, self.spec.responses
        taught = restyle(log_mel[:count], valid_frames[:count], *chosen)
        taught, target, frames = mixup(taught, target, valid_frames[:count], config.augment, generator)
        weak = log_mel[count:], valid_frames[count:]
        views = self._strong(*weak, generator) if self.paired else weak[0]
        inputs = torch.cat([taught, views]), torch.cat([frames, weak[1]]), generator
        own = self.paired and self.averaged_teacher is None
        logits, said = model(*inputs, weak if own else None)
        if self.averaged_teacher is not None and self.paired:
            with torch.no_grad():
                said, _ = self.averaged_teacher(*weak)
            reshard(self.averaged_teacher)
        loss, metrics = single_loss(logits[:count], target, config.label_smoothing)
        metrics["supervised_loss"] = loss.detach()
        if said is None:
            return loss, metrics
        more, found = self._unsupervised(logits[count:], said.float().softmax(1))
        return loss + more, metrics | found

    @property
    def averaged_teacher(self) -> nn.Module | None:
        """The average of the weights, where its guesses are the targets."""
        return self.averaged if self.settings.teacher == "ema" else None

    def _strong(self, log_mel: Tensor, valid_frames: Tensor, generator: torch.Generator) -> Tensor:
        """The strong views (n, T, F) of weak ones: other devices, stripes masked, the same frames."""
        return restyle(log_mel, valid_frames, self.settings.strong, self.audio, generator, self.spec.strong_responses)

    def _unsupervised(self, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of strong views' logits (n, C) by the weak views' probabilities (n, C), and its metrics."""
        metrics = {"threshold": self.weighting.threshold.clone().to(logits.device, torch.float32)}
        weights = self.weighting(probabilities)
        loss = consistency_loss(logits, probabilities.argmax(1), weights)
        metrics |= {"unsupervised_loss": loss.detach(), "mask_share": weights.mean()}
        total = self.settings.weight * loss
        if isinstance(self.weighting, FreeMatch):
            fairness = self.weighting.fairness(logits, weights)
            metrics["fairness_loss"] = fairness.detach()
            total = total + self.settings.fairness_weight * fairness
        return total, metrics

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """As of the classifier alone."""
        return super().validate(classifier_of(model), session)

    def save(self, model: nn.Module) -> None:
        """Write the classifier folder."""
        super().save(classifier_of(model))


def classifier_of(model: nn.Module) -> nn.Module:
    """The classifier of a whole `ConsistencyModel`."""
    assert isinstance(model, ConsistencyModel)
    return model.classifier
