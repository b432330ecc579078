"""Estimate what a plan takes, from the settings alone: steps, kept tokens and memory."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from raymae.config import Config
from raymae.config.stages import STAGES, Kind
from raymae.features.augment import crop_frames
from raymae.models import MODELS, build_classifier, grid_size, kept_tokens
from raymae.pipeline.plan.plan import Plan

TORCH_MB = 650
"""Resident memory of a process that has imported torch."""


def estimate(plan: Plan) -> dict[str, str]:
    """A few words for every node that has to run."""
    config = plan.config
    found = {}
    if "prepare" in plan.to_do:
        megabytes = len(plan.clips) * config.audio.n_frames * config.audio.n_mels * 2 / 1e6
        kept = f"{megabytes:.0f} MB of features" if config.data.store == "parquet" else "features are not kept"
        found["prepare"] = f": {len(plan.clips)} clips, {kept}"
    for name in plan.to_do:
        stage = STAGES[plan.nodes[name].stage]
        if stage.kind and not stage.timed:
            found[name] = ESTIMATES[stage.kind](plan.plan_of(name), plan.nodes[name].stage)
    return found


def pretrain_estimate(plan: Plan, stage: str) -> str:
    """Clips, steps, kept tokens and memory of pre-training."""
    config, train = plan.config, plan.config.pretrain
    rows = plan.rows(["pool"] if train.pool_only else ["pool", "train"])
    clips = round(pc.sum(rows["weight"]).as_py() or 0)
    steps = ceil(train.epochs * clips / train.global_batch_size)
    frames = crop_frames(train.augment, config.audio)
    grid = grid_size(frames, config.audio.n_mels, config.model.patch_size)
    with torch.device("meta"):
        model = MODELS[config.model.name](config.audio, config.model)
    memory = memory_mb(model, train.micro_batch_size * prod(grid), config)
    return (
        f": {clips} clips{heard(rows, config)}, {steps} steps, "
        f"{kept_tokens(grid, config.model)} of {prod(grid)} tokens kept, "
        f"{parameters(model) / 1e6:.1f} M parameters, about {memory:.0f} MB a worker"
    )


def heard(clips: pa.Table, config: Config) -> str:
    """The hours of clips, and the share of them that an epoch of pre-training sees; empty where it isn't known."""
    seconds = clips["seconds"].drop_null().to_numpy() if "seconds" in clips.column_names else np.empty(0)
    if not seconds.sum():
        return ""
    crop = config.pretrain.augment.crop_seconds or config.audio.clip_seconds
    share = np.minimum(seconds, crop).sum() / seconds.sum()
    part = "" if share > 0.995 else f", {100 * share:.0f} % of them in an epoch (crops of {crop:g} s)"
    return f" of {seconds.sum() / 3600:.3g} hours{part}"


def finetune_estimate(plan: Plan, stage: str) -> str:
    """Clips, steps and memory of fine-tuning."""
    config, train = plan.config, plan.config.finetune
    rows = plan.rows(["train"])
    labelled = len(rows) - rows["scene_label"].null_count
    steps = ceil(train.epochs * labelled / train.global_batch_size)
    more = " and the accepted pseudo-labels, at least" if stage == "student" else ""
    frames = crop_frames(train.augment, config.audio)
    tokens = train.micro_batch_size * prod(grid_size(frames, config.audio.n_mels, config.model.patch_size))
    with torch.device("meta"):
        model = build_classifier(config.audio, config.model, train, num_classes=10)
    return f": {labelled} labels{more}, {steps} steps, about {memory_mb(model, tokens, config):.0f} MB a worker"


def consistency_estimate(plan: Plan, stage: str) -> str:
    """Clips, steps and memory of consistency training."""
    config, settings = plan.config, plan.config.consistency
    train, rows = settings.training(config.finetune), plan.rows(["train"])
    unlabelled = rows["scene_label"].null_count
    ratio = settings.ratio if unlabelled else 0
    steps = ceil(train.epochs * (len(rows) - unlabelled) / train.global_batch_size)
    grid = grid_size(crop_frames(train.augment, config.audio), config.audio.n_mels, config.model.patch_size)
    with torch.device("meta"):
        model = build_classifier(config.audio, config.model, train, num_classes=10)
    memory = memory_mb(model, (1 + ratio) * train.micro_batch_size * prod(grid), config)
    return (
        f": {len(rows) - unlabelled} labels and {unlabelled} unlabelled clips, 1 to {ratio} in each of {steps} steps, "
        f"about {memory:.0f} MB a worker"
    )


ESTIMATES: dict[Kind, Callable[[Plan, str], str]] = {
    "pretrain": pretrain_estimate,
    "finetune": finetune_estimate,
    "consistency": consistency_estimate,
}
"""By training task, from a plan and a stage to a few words."""


def parameters(model: nn.Module) -> int:
    """Trained parameters."""
    return sum(value.numel() for value in model.parameters())


def memory_mb(model: nn.Module, tokens: int, config: Config) -> float:
    """Weights, gradient, two moments and the average in fp32, and some 40 activations per token and block.

    Where they are sharded, a share of them and, to validate, the weights as a whole.
    """
    activations = tokens * config.model.embed_dim * config.model.depth * 40 * 4
    weights, workers = 4 * parameters(model), config.compute.num_workers or 1
    sharded = config.compute.parallel == "fsdp" and workers > 1
    return TORCH_MB + ((5 / workers + 1 if sharded else 5) * weights + activations) / 1e6
