"""Where the head of a classifier begins: at a logistic regression on what the untouched encoder makes of the labels.

Fine-tuning from there moves the encoder by what the labels ask of it, not by the errors of a random head (Kumar et al.
2022, "Fine-tuning can distort pretrained features": linear probing, then fine-tuning).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymae.datasets.rows import Rows
from raymae.evaluation.probes import make_probe
from raymae.features.augment import crop_frames
from raymae.features.store import iterate
from raymae.models import AudioClassifier
from raymae.training.batches.order import sample
from raymae.training.spec import StageSpec

MOST_CLIPS, BATCH = 2000, 32
"""Most clips that the regression learns from, and how many are read at a time."""
LEAST = 0.02
"""Smallest share of a soft target that the regression hears of."""


@torch.no_grad()
def start_head(model: AudioClassifier, spec: StageSpec, rows: Rows, targets: NDArray[np.floating], seed: int) -> None:
    """Set the head to the linear probe of `raymae.evaluation.probes` on rows with targets (n, C).

    The probe reads the clips as they are: with Freq-MixStyle and random responses it finds five points less (labelled
    clips of ESC-10, held out by group or by group and microphone).

    The model stays on its device. Of one class a clip one probe tells all: a clip counts for each class by its target's
    share of it; a class that no row has gets weights of 0 and the smallest bias. Of several, each class has a probe of
    its own; one that no row or every row has stays as it is. Where there is nothing to tell apart, nothing changes.
    """
    chosen = sample(np.arange(len(rows)), MOST_CLIPS, seed)
    single = spec.classification.labels == "single"
    shares = targets[chosen]
    labels = (shares > (LEAST if single else 0.5)).astype(np.int64)
    several = np.flatnonzero((labels != labels[:1]).any(axis=0))
    if not len(several):
        return
    x = embed(model, spec, rows[chosen])
    if single:
        clips, classes = np.nonzero(labels)
        weight, bias, known = linear(x[clips], classes, shares[clips, classes])
        if len(known) == 2:  # scikit-learn gives the second class alone, against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        model.head.weight.zero_()
        model.head.bias.fill_(float(bias.min()))
    else:
        found = [linear(x, labels[:, column]) for column in several]
        weight, bias = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
        known = several
    model.head.weight[torch.from_numpy(known)] = torch.from_numpy(weight).to(model.head.weight)
    model.head.bias[torch.from_numpy(known)] = torch.from_numpy(bias).to(model.head.bias)


def linear(
    x: NDArray[np.float32], labels: NDArray[np.integer], counts: NDArray[np.floating] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Weights (K, E) and biases (K,) of a linear probe of inputs (n, E), and its classes; of two, K is 1. By `counts`
    (n,) an input counts less than once."""
    probe = make_probe("linear", len(x))
    probe.fit(x, labels, **{f"{step}__sample_weight": counts for step, _ in probe.steps})
    scaler, regression = probe.steps[0][1], probe.steps[1][1]
    weight = regression.coef_ / scaler.scale_
    return weight, regression.intercept_ - weight @ scaler.mean_, regression.classes_.astype(np.int64)


@torch.no_grad()
def embed(model: AudioClassifier, spec: StageSpec, rows: Rows) -> NDArray[np.float32]:
    """The head's inputs (n, E) of some rows, with all patches; of crops from the middle, where the model crops."""
    crop = crop_frames(spec.config.finetune.augment, spec.config.audio)
    training, device = model.training, model.head.weight.device
    model.eval()
    found: list[Tensor] = []
    for _, values, frames in iterate(spec.store, rows, BATCH):
        log_mel, valid = torch.from_numpy(values).to(device).float(), torch.from_numpy(frames).to(device).long()
        patches = model.patchify(*middle(log_mel, valid, crop))
        found.append(model.embed(patches, model.masking(patches, None)).float())
    model.train(training)
    return np.asarray(torch.cat(found).cpu().numpy())


def middle(log_mel: Tensor, valid_frames: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The middle of the valid frames of log-mels (B, T, F) and valid frames (B,): (B, length, F), (B,)."""
    if length >= log_mel.shape[1]:
        return log_mel, valid_frames
    starts = (valid_frames - length).clamp(min=0) // 2
    frames = starts[:, None] + torch.arange(length, device=log_mel.device)
    return log_mel.gather(1, frames[:, :, None].expand(-1, -1, log_mel.shape[2])), valid_frames.clamp(max=length)
