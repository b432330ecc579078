"""Class probabilities averaged over views of a clip with random EQ, as of several devices. Works without Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raymae.config import AudioConfig, AugmentConfig
from raymae.datasets.rows import Rows
from raymae.features.augment import add_offsets, random_eq
from raymae.features.draws import Draws
from raymae.features.store import FeatureStore, iterate
from raymae.inference.classifier import Probabilities
from raymae.inference.predictor import Predictor
from raymae.models.classifier import subtract_band_mean
from raymae.storage.folder import Folder

BATCH = 64


def averaged(
    predictor: Predictor,
    log_mel: NDArray[np.floating],
    valid_frames: NDArray[np.integer],
    clip_ids: Sequence[str],
    views: int,
) -> Probabilities:
    """Class probabilities (B, C) of log-mels (B, T, F), averaged over test-time augmentations.

    These are the clips as they are, with the band mean subtracted (unless the classifier does that itself), and `views`
    times with random EQ; with 0 views, only the clips as they are. The random EQ of a clip depends on its clip_id, not
    on its batch.
    """
    found = predictor.probabilities(log_mel, valid_frames)
    if not views:
        return found
    one = predictor.classifier
    x, frames = torch.from_numpy(log_mel).float(), torch.from_numpy(np.asarray(valid_frames)).long()
    augmented = [eq_view(x, frames, clip_ids, one.finetune.augment, one.audio, view) for view in range(views)]
    if not one.finetune.subtract_band_mean:
        augmented.append(subtract_band_mean(x, frames))
    total = found + sum(predictor.probabilities(view.numpy(), valid_frames) for view in augmented)
    return np.asarray(total / (1 + len(augmented)), np.float32)


def eq_view(
    log_mel: torch.Tensor,
    valid_frames: torch.Tensor,
    clip_ids: Sequence[str],
    config: AugmentConfig,
    audio: AudioConfig,
    view: int,
) -> torch.Tensor:
    """Log-mels (B, T, F) with random EQ, drawn by the clips' ids and the number of the view."""
    always = AugmentConfig(eq_p=1.0, eq_nats=config.eq_nats, eq_knots=config.eq_knots)
    names = [hashlib.sha256(clip_id.encode()).digest()[:7] for clip_id in clip_ids]
    places = np.array([int.from_bytes(name, "little") for name in names], np.int64)
    offsets = random_eq(always, audio, Draws(view, places)).astype(np.float32)
    return add_offsets(log_mel, valid_frames, torch.from_numpy(offsets))


def classify(
    store: FeatureStore, rows: Rows, classifier: Folder, views: int = 0, torch_device: str = "cpu"
) -> Probabilities:
    """Class probabilities (n, C) of some rows of the store, in this process (with Ray: `raymae.cluster.infer`)."""
    predictor = Predictor(classifier, torch_device=torch_device)
    found = [
        averaged(predictor, log_mel, frames, store.clip_ids.take(some).to_pylist(), views)
        for some, log_mel, frames in iterate(store, rows, BATCH)
    ]
    return np.concatenate(found) if found else np.zeros((0, len(predictor.class_names)), np.float32)
