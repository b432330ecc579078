"""Initialise a classifier's head with a logistic regression on the frozen encoder's embeddings.

Then the errors of a random head don't distort the encoder at the start of fine-tuning (Kumar et al. 2022, "Fine-tuning
can distort pretrained features": linear probing, then fine-tuning).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymae.config import AugmentConfig
from raymae.datasets.rows import Rows
from raymae.evaluation.probes import fit_probe
from raymae.features.augment import apply_device, crop_frames, draw_coloration
from raymae.features.draws import Draws, mix
from raymae.features.store import iterate
from raymae.models import AudioClassifier
from raymae.training.batches.order import sample
from raymae.training.spec import StageSpec

MOST_CLIPS, MOST_COPIES, BATCH = 2000, 200, 32
"""Most clips that the regression is trained on, most copies of them, and how many clips are read at a time."""
LEAST = 0.02
"""Smaller shares of a soft target are left out of the regression."""


@torch.no_grad()
def start_head(
    model: AudioClassifier,
    spec: StageSpec,
    rows: Rows,
    targets: NDArray[np.floating],
    counts: NDArray[np.floating],
    seed: int,
) -> None:
    """Set the head to the linear probe of `raymae.evaluation.probes` on rows with targets (n, C), of weights (n,).

    The probe is trained on clips without augmentation: with Freq-MixStyle and random responses it scores five points
    less (labelled clips of ESC-10, held out by group or by group and microphone). But where fine-tuning draws responses
    or random EQ, a feature is divided by its deviation over copies through those, so that what depends on the device
    counts less: 0.032 ± 0.033 more on a microphone that was left out, 0.004 ± 0.014 on the others (32 tasks of ten
    classes of the pool that pre-training was not shown).

    The model stays on its device. Single-label: one probe for all classes, in which a clip counts for each class with
    its target's share of its weight; a class that no row has gets weights of 0 and the smallest bias. Multi-label: a
    probe for each class; a class that no row or every row has keeps its weights. If the rows don't differ in any class,
    all weights are kept.
    """
    chosen = sample(np.arange(len(rows)), MOST_CLIPS, seed)
    single = spec.classification.labels == "single"
    shares, counts = targets[chosen], counts[chosen]
    labels = (shares > (LEAST if single else 0.5)).astype(np.int64)
    varying = np.flatnonzero((labels != labels[:1]).any(axis=0))
    if not len(varying):
        return
    x, copies = embed(model, spec, rows[chosen]), embed_copies(model, spec, rows[chosen], seed)
    if single:
        clips, classes = np.nonzero(labels)
        weight, bias, known = linear(x[clips], classes, shares[clips, classes] * counts[clips], copies)
        if len(known) == 2:  # scikit-learn has weights for the second class alone, against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        model.head.weight.zero_()
        model.head.bias.fill_(float(bias.min()))
    else:
        found = [linear(x, labels[:, column], counts, copies) for column in varying]
        weight, bias = (np.concatenate(parts) for parts in list(zip(*found, strict=True))[:2])
        known = varying
    model.head.weight[torch.from_numpy(known)] = torch.from_numpy(weight).to(model.head.weight)
    model.head.bias[torch.from_numpy(known)] = torch.from_numpy(bias).to(model.head.bias)


def linear(
    x: NDArray[np.float32],
    labels: NDArray[np.integer],
    counts: NDArray[np.floating] | None = None,
    copies: NDArray[np.float32] | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Weights (K, E) and biases (K,) of a linear probe of inputs (n, E), and its classes; for two classes K is 1.

    `counts` (n,) are the weights of the inputs, at most 1; the inputs are standardised by the `copies` (m, E) if there
    are any.
    """
    probe = fit_probe("linear", x, labels, counts, copies)
    scaler, regression = probe.steps[0][1], probe.steps[1][1]
    weight = regression.coef_ / scaler.scale_
    return weight, regression.intercept_ - weight @ scaler.mean_, regression.classes_.astype(np.int64)


def other_devices(config: AugmentConfig) -> AugmentConfig | None:
    """The responses and the random EQ of fine-tuning alone, for every clip; None where it has neither."""
    responses = config.responses if config.responses_by == "offsets" and config.response_share else ()
    own = AugmentConfig(
        eq_p=float(config.eq_p > 0),
        eq_nats=config.eq_nats,
        eq_knots=config.eq_knots,
        responses=responses,
        response_p=1.0 if responses else None,
    )
    return own if own.eq_p or own.response_share else None


def embed_copies(model: AudioClassifier, spec: StageSpec, rows: Rows, seed: int) -> NDArray[np.float32] | None:
    """The head's inputs (m, E) for copies of at most `MOST_COPIES` of the rows, each as another device records it; None
    where fine-tuning draws neither responses nor random EQ."""
    devices = other_devices(spec.config.finetune.augment)
    return embed(model, spec, sample(rows, MOST_COPIES, seed), (devices, mix(seed, 1))) if devices else None


@torch.no_grad()
def embed(
    model: AudioClassifier, spec: StageSpec, rows: Rows, device: tuple[AugmentConfig, int] | None = None
) -> NDArray[np.float32]:
    """The head's inputs (n, E) for some rows, unmasked; of crops from the middle if fine-tuning crops.

    `device` are coloration to draw for each clip, and the seed of the draws.
    """
    crop = crop_frames(spec.config.finetune.augment, spec.config.audio)
    training, place = model.training, model.head.weight.device
    model.eval()
    found: list[Tensor] = []
    for number, values, frames in iterate(spec.store, rows, BATCH):
        log_mel, valid = torch.from_numpy(values).to(place).float(), torch.from_numpy(frames).to(place).long()
        if device:
            config, seed = device
            drawn = draw_coloration(frames, config, spec.config.audio, Draws(seed, number), spec.responses)
            log_mel = apply_device(
                log_mel, valid, {name: torch.from_numpy(one).to(place) for name, one in drawn.items()}
            )
        found.append(model.features(*middle(log_mel, valid, crop)).float())
    model.train(training)
    return np.asarray(torch.cat(found).cpu().numpy())


def middle(log_mel: Tensor, valid_frames: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Crop log-mels (B, T, F) to the middle of their valid frames (B,): (B, length, F), (B,)."""
    if length >= log_mel.shape[1]:
        return log_mel, valid_frames
    starts = (valid_frames - length).clamp(min=0) // 2
    frames = starts[:, None] + torch.arange(length, device=log_mel.device)
    return log_mel.gather(1, frames[:, :, None].expand(-1, -1, log_mel.shape[2])), valid_frames.clamp(max=length)
