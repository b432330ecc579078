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

from raymae.augment import augment
from raymae.models import AudioClassifier
from raymae.order import Rows, mix, sample
from raymae.probe import make_probe
from raymae.spec import StageSpec
from raymae.store import iterate

MOST_CLIPS, MOST_VIEWS, EXAMPLES, BATCH = 2000, 6, 1500, 32
"""Most clips that the regression learns from, most augmented views of each, and about how many of them in all."""
LEAST = 0.02
"""Smallest share of a soft target that the regression hears of."""


@torch.no_grad()
def start_head(model: AudioClassifier, spec: StageSpec, rows: Rows, targets: NDArray[np.floating], seed: int) -> None:
    """Set the head to the linear probe of `raymae.probe` on augmented views of rows with targets (n, C).

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
    views = max(1, min(MOST_VIEWS, EXAMPLES // len(chosen)))
    x = np.concatenate([embed(model, spec, rows[chosen], mix(seed, view)) for view in range(views)])
    if single:
        clips, classes = np.nonzero(labels)
        places = np.concatenate([clips + view * len(chosen) for view in range(views)])
        weight, bias, known = linear(x[places], np.tile(classes, views), np.tile(shares[clips, classes], views))
        if len(known) == 2:  # scikit-learn gives the second class alone, against the first
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        model.head.weight.zero_()
        model.head.bias.fill_(float(bias.min()))
    else:
        found = [linear(x, np.tile(labels[:, column], views)) for column in several]
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
def embed(model: AudioClassifier, spec: StageSpec, rows: Rows, seed: int) -> NDArray[np.float32]:
    """The head's inputs (n, E) of one augmented view of some rows, with all their patches."""
    generator = torch.Generator().manual_seed(seed >> 1)
    training, device = model.training, model.head.weight.device
    model.eval()
    found: list[Tensor] = []
    for _, values, frames in iterate(spec.store, rows, BATCH):
        log_mel, valid = torch.from_numpy(values).to(device).float(), torch.from_numpy(frames).to(device).long()
        log_mel, valid = augment(
            log_mel, valid, spec.config.finetune.augment, spec.config.audio, generator, spec.responses
        )
        patches = model.patchify(log_mel, valid)
        found.append(model.embed(patches, model.masking(patches, None)).float())
    model.train(training)
    return np.asarray(torch.cat(found).cpu().numpy())
