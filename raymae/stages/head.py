"""Where the head of a classifier begins: at a logistic regression on what the untouched encoder makes of the labels.

Fine-tuning from there moves the encoder by what the labels ask of it, not by the errors of a random head (Kumar et al.
2022, "Fine-tuning can distort pretrained features": linear probing, then fine-tuning).
"""

from __future__ import annotations

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

MOST_CLIPS, MOST_VIEWS, EXAMPLES, BATCH = 2000, 6, 3000, 32
"""Most clips that the regression learns from, most augmented views of each, and about how many of them in all."""


@torch.no_grad()
def start_head(model: AudioClassifier, spec: StageSpec, rows: Rows, labels: NDArray[np.integer], seed: int) -> None:
    """Set the head to the linear probe of `raymae.probe` on augmented views of rows with class numbers (n,).

    The model stays on its device. A class that no row has gets weights of 0 and the smallest bias; where there is but
    one class, nothing changes.
    """
    chosen = sample(np.arange(len(rows)), MOST_CLIPS, seed)
    if len(np.unique(labels[chosen])) < 2:
        return
    views = max(1, min(MOST_VIEWS, EXAMPLES // len(chosen)))
    x = np.concatenate([embed(model, spec, rows[chosen], mix(seed, view)) for view in range(views)])
    probe = make_probe("linear", len(x)).fit(x, np.tile(labels[chosen], views))
    scaler, regression = probe.steps[0][1], probe.steps[1][1]
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn gives the second class alone, against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    bias = bias - weight @ scaler.mean_
    model.head.weight.zero_()
    model.head.bias.fill_(float(bias.min()))
    known = torch.from_numpy(regression.classes_).long()
    model.head.weight[known] = torch.from_numpy(weight).to(model.head.weight)
    model.head.bias[known] = torch.from_numpy(bias).to(model.head.bias)


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
        masking = model.masking(patches, None)
        found.append(model.pool(model.encoder(patches, masking), masking, patches.grid[1]).float())
    model.train(training)
    return np.asarray(torch.cat(found).cpu().numpy())
