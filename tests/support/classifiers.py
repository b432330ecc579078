"""An untrained classifier for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raymae.config import FinetuneConfig
from raymae.inference.classifier import write_classifier
from raymae.models import build_classifier
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO
from tests.support.training import TINY


def write_tiny(folder: Folder, names: Sequence[str], finetune: FinetuneConfig = TINY.finetune, seed: int = 0) -> Folder:
    """Write a classifier of random weights whose head gives different results for different recordings."""
    torch.manual_seed(seed)
    model = build_classifier(TINY_AUDIO, TINY.model, finetune, len(names))
    torch.nn.init.normal_(model.head.weight, std=1.0)
    write_classifier(
        folder, model, class_names=list(names), audio=TINY_AUDIO, model_config=TINY.model, finetune=finetune
    )
    return folder
