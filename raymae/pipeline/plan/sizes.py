"""What the training stages of a plan hold: tokens, parameters and memory of a worker; builds the models' shapes."""

from __future__ import annotations

from math import prod

import torch

from raymae.config import Config, TrainConfig
from raymae.config.stages import STAGES
from raymae.features.augment import crop_frames
from raymae.models import grid_size, kept_tokens
from raymae.pipeline.dry_run.activations import Device
from raymae.pipeline.dry_run.memory import Memory, finetune_memory, pretrain_memory
from raymae.pipeline.plan.plan import Plan

TORCH_MB = 650
"""Resident memory of a process that has imported torch."""
CLASSES = 10
"""Of a classifier: their number hardly changes its size."""


def size_lines(plan: Plan) -> list[str]:
    """A line for each training that has to run, but one for those of the same sizes."""
    found: dict[str, list[str]] = {}
    for name in plan.to_do:
        if STAGES[plan.nodes[name].stage].kind:
            found.setdefault(size_of(plan, name), []).append(name)
    return [f"{', '.join(names)}: {size}" for size, names in found.items()]


def size_of(plan: Plan, name: str) -> str:
    """What a worker of a training stage holds."""
    config, stage = plan.plan_of(name).config, STAGES[plan.nodes[name].stage]
    device = likely_device(config)
    if stage.baseline:
        return f"{plan.spec(name).steps} steps of {config.evaluate.cnn}"
    if stage.kind == "pretrain":
        train = config.pretrain
        grid = grid_size(crop_frames(train.augment, config.audio), config.audio.n_mels, config.model.patch_size)
        memory = pretrain_memory(config.audio, config.model, train, device)
        kept = f"{kept_tokens(grid, config.model)} of {prod(grid)} tokens kept"
        return f"{kept}, {memory.gradients / 4e6:.1f} M parameters, {about(worker_mb(memory, train, config))}"
    memory = finetune_memory(config.audio, config.model, config.finetune, CLASSES, device)
    if stage.kind == "finetune":
        return about(worker_mb(memory, config.finetune, config))
    ratio = config.consistency.ratio if plan.has_unlabelled else 0
    return about(worker_mb(memory, config.consistency.training(config.finetune), config, 1 + ratio))


def about(megabytes: float) -> str:
    """The memory of a worker in words."""
    return f"about {megabytes:,.0f} MB a worker"


def likely_device(config: Config) -> Device:
    """The device that the stages are likely to be trained on, as far as this machine knows."""
    on_gpu = config.compute.use_gpu or (config.compute.use_gpu is None and torch.cuda.is_available())
    return "cuda" if on_gpu else "cpu"


def worker_mb(memory: Memory, train: TrainConfig, config: Config, clips_for_each: int = 1) -> float:
    """Memory of a training worker with its largest forward pass, in MB, that of torch included.

    Where weights, gradients, moments and average are sharded: a share of them and, to validate, the weights as a whole.
    """
    workers = config.compute.num_workers or 1
    groups = train.global_batch_size // train.group_size
    clips = min(train.micro_batch_size, -(-groups // workers) * train.group_size)
    spared = 0.0
    if config.compute.parallel == "fsdp" and workers > 1:
        spared = memory.state * (1 - 1 / workers) - memory.weights
    return TORCH_MB + (memory.peak(clips * clips_for_each) - spared) / 1e6
