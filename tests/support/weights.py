"""Pre-trained weights in other code's names, and plans that start from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from timm.models.vision_transformer import VisionTransformer

from raymae.config import Config
from raymae.config.stages import Target
from raymae.models.encoder import init_weights
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from tests.support.training import TINY


def make_state(seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    """Weights of timm's VisionTransformer for TINY's model, 9 x 4 patches."""
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "in_chans": 1, "img_size": (72, 32), "patch_size": 8}
    torch.manual_seed(seed)
    vit = VisionTransformer(**{**sizes, "num_classes": 0, **changes}).apply(init_weights)
    with torch.no_grad():
        vit.pos_embed.normal_(std=0.1)
    return vit.state_dict()


def start(source: Path | str, section: str = "finetune", config: Config = TINY) -> Config:
    return replace(config, **{section: replace(getattr(config, section), init_from=str(source))})


def make_plan(config: Config, clips: pa.Table, storage: Path, target: Target = "register") -> Plan:
    root = Folder(str(storage))
    return Plan(config, clips, root, target, find(config, root, target))
