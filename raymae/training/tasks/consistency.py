"""Consistency training: a classifier on labelled clips and, with its own predictions as targets, on unlabelled ones.

Every mixing group holds both. An unlabelled clip gets the geometric augmentation of fine-tuning, which gives its weak
view. The model's prediction for the weak view, weighted by `raymae.training.tasks.consistency_weights`, is the target
of the strong view: the same crop through another device and with stripes masked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.features.augment import Drawn, apply_coloration, draw_coloration
from raymae.features.draws import Draws, mix
from raymae.models import AudioClassifier, Cnn
from raymae.models.masking import every
from raymae.models.patches import grid_size
from raymae.training.batches.order import PairedOrder
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import DeviceBatch, HostBatch, Transfer
from raymae.training.parallel import reshard
from raymae.training.spec import StageSpec
from raymae.training.tasks.base import Counts
from raymae.training.tasks.consistency_weights import METHODS, FreeMatch, consistency_loss
from raymae.training.tasks.finetune import FinetuneTask, masks_of
from raymae.training.tasks.inputs import Frames, Sound, part, prefixed
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
        *masks: Any,
        weak: tuple[Any, ...] | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The logits (B, C) of log-mels, and those of weak views: unmasked, in evaluation mode.

        Args:
            log_mel: (B, T, F).
            valid_frames: (B,).
            masks: kept and drop of `AudioClassifier.forward`.
            weak: the classifier's arguments for the weak views; their logits (n, C) have no gradient.
            hidden: (B, 2), the frames that SpecAugment masks.
        """
        logits = self.classifier(log_mel, valid_frames, *masks, hidden=hidden)
        # after those with a gradient: else autocast would cache copies of the weights without one
        return logits, None if weak is None else predict(self.classifier, *weak)


@torch.no_grad()
def predict(classifier: nn.Module, *inputs: Any) -> Tensor:
    """Logits (n, C) of a classifier in evaluation mode."""
    training = classifier.training
    logits: Tensor = classifier.eval()(*inputs)
    classifier.train(training)
    return logits


class ConsistencyTask(FinetuneTask):
    """A classifier on the labelled clips of the training split and its predictions for the unlabelled ones."""

    counted = ("clips", "views", "groups")
    divisors = 3

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self.settings = spec.config.consistency
        self.weighting = METHODS[self.settings.method](len(self.class_names), self.settings)
        self.model = ConsistencyModel(self.network, self.weighting)
        self.paired = isinstance(self.order, PairedOrder)
        if not self.paired:
            log.warning("%s: split train has no unlabelled clip; training on the labelled clips alone", spec.name)

    def prepare(self, clips: Clips, transfer: Transfer) -> tuple[HostBatch, Counts]:
        """Decide everything of the labelled clips and of both views of the unlabelled ones; count all that sound."""
        if not self.paired:
            host, counts = super().prepare(clips, transfer)
            return host, np.append(counts, [0.0, 0.0])
        size = clips.group_size
        labelled = size // (1 + self.settings.ratio)
        by_group = np.arange(len(clips.rows)).reshape(-1, size)
        clips = clips.take(np.concatenate([by_group[:, :labelled].ravel(), by_group[:, labelled:].ravel()]))
        n = len(by_group) * labelled
        draws = Draws(mix(self.seed, 5), clips.places)
        own_draws = draws.select(slice(n), labelled)
        frames = self.inputs.take(clips, draws, own_draws, transfer)
        sound = self._find_sound(frames)
        drawn, own = self._prepare_labelled(clips.rows[:n], own_draws, frames, sound)
        del drawn["label_weight"]  # all are labelled
        strong, views = self._prepare_views(n, draws.select(slice(n, None), size - labelled), frames, sound)
        drawn |= strong | self._draw_masks(np.concatenate([own, views]), sound.grid, draws)
        drawn["input_frames"] = np.concatenate([drawn["valid_frames"], frames.valid_frames[n:]])
        stripes = drawn.get("frame_stripe"), drawn.get("strong.frame_stripe")
        if any(stripe is not None for stripe in stripes):
            shown = np.zeros((len(clips.rows), 2), np.int64)
            for part_of, stripe in zip((slice(n), slice(n, None)), stripes, strict=True):
                shown[part_of] = 0 if stripe is None else stripe
            drawn["input_stripe"] = shown
        counted = (clips.weight * sound.sounding).astype(np.float32)
        drawn |= {"counted": counted[:n], "views_counted": counted[n:], "weight": clips.weight[:n:labelled]}
        numbers = counted[:n].sum(), counted[n:].sum(), drawn["weight"].sum()
        return HostBatch(frames.log_mel, drawn, int(clips.places[0])), np.array(numbers, np.float64)

    def _prepare_views(self, n: int, draws: Draws, frames: Frames, sound: Sound) -> tuple[Drawn, NDArray[np.bool_]]:
        """The strong and weak views of the clips after the first `n`, and the strong ones' valid patches (m, S, L)."""
        rows, valid_frames = slice(n, None), frames.valid_frames[n:]
        gain = None if frames.gain is None else frames.gain[n:]
        settings = valid_frames, self.settings.strong, self.audio
        strong = draw_coloration(*settings, draws.named("strong"), self.spec.strong_responses, gain)
        drawn = prefixed("strong.", strong) | {"view_frames": valid_frames}
        if gain is not None:
            offsets = np.broadcast_to(gain, (len(gain), self.audio.n_mels))
            drawn["weak.offsets"] = offsets.astype(np.float32)
        weak = sound.valid[rows]
        if isinstance(self.network, AudioClassifier) and (self.always_masks or not weak.all()):
            drawn["weak_valid"] = np.repeat(weak[:, None], self.network.variants, 1).reshape(-1, weak.shape[2])
        return drawn, sound.without_hidden(strong, rows)

    def training_step(
        self, model: nn.Module, batch: DeviceBatch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of labelled clips, augmented as in fine-tuning, and of the strong views of unlabelled ones."""
        drawn, log_mel = batch.drawn, batch.log_mel.float()
        n = len(drawn["target"])
        inputs = self._labelled(log_mel[:n], drawn)
        if not self.paired:
            logits, _ = model(inputs, drawn["valid_frames"], *masks_of(drawn), hidden=drawn.get("frame_stripe"))
            loss, metrics = self._supervised(logits, drawn["target"], drawn["counted"], totals["clips"])
            return loss, metrics | {"supervised_loss": loss.detach()}
        strong = apply_coloration(log_mel[n:], drawn["view_frames"], part("strong.", drawn))
        weak = self._weak(apply_coloration(log_mel[n:], drawn["view_frames"], part("weak.", drawn)), drawn)
        own = self.averaged_teacher is None
        arguments = torch.cat([inputs, strong]), drawn["input_frames"], *masks_of(drawn)
        logits, weak_logits = model(*arguments, weak=weak if own else None, hidden=drawn.get("input_stripe"))
        if self.averaged_teacher is not None:
            with torch.no_grad():
                weak_logits, _ = self.averaged_teacher(*weak)
            reshard(self.averaged_teacher)
        loss, metrics = self._supervised(logits[:n], drawn["target"], drawn["counted"], totals["clips"])
        metrics["supervised_loss"] = loss.detach()
        assert weak_logits is not None
        more, found = self._unsupervised(logits[n:], weak_logits.float().softmax(1), drawn, totals)
        return loss + more, metrics | found

    def _weak(self, log_mel: Tensor, drawn: Mapping[str, Tensor]) -> tuple[Any, ...]:
        """The classifier's arguments for weak views: all valid patches."""
        if isinstance(self.network, Cnn):
            return log_mel, drawn["view_frames"]
        length = min(self.network.segment, log_mel.shape[1])
        grid = grid_size(length, log_mel.shape[2], self.spec.config.model.patch_size)
        rows = len(log_mel) * self.network.variants * len(self.network.segment_starts(log_mel.shape[1]))
        return log_mel, drawn["view_frames"], every(drawn.get("weak_valid"), rows, grid[0] * grid[1], log_mel.device)

    @property
    def averaged_teacher(self) -> nn.Module | None:
        """The EMA of the model, if its predictions are the targets."""
        return self.averaged if self.settings.teacher == "ema" else None

    def _unsupervised(
        self, logits: Tensor, probabilities: Tensor, drawn: Mapping[str, Tensor], totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The share of the loss of the strong views' logits (n, C) against the weak views' probabilities (n, C)."""
        counted = drawn["views_counted"]
        threshold = self.weighting.threshold.to(logits.device, torch.float32).clone()
        metrics = {"threshold": threshold * drawn["weight"].sum() / totals["groups"]}
        weights = self.weighting(probabilities, counted)
        loss = consistency_loss(logits, probabilities.argmax(1), weights) / totals["views"]
        metrics |= {"unsupervised_loss": loss.detach(), "mask_share": weights.sum() / totals["views"]}
        total = self.settings.weight * loss
        if isinstance(self.weighting, FreeMatch):
            groups = logits.unflatten(0, (len(drawn["weight"]), -1)), weights.unflatten(0, (len(drawn["weight"]), -1))
            fairness = (self.weighting.fairness(*groups) * drawn["weight"]).sum() / totals["groups"]
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
