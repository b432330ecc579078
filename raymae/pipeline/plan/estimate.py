"""Estimate what a plan takes, from the settings alone: steps, kept tokens and memory."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raymae.config import Config, TrainConfig
from raymae.config.stages import STAGES, Kind
from raymae.features.augment import crop_frames
from raymae.models import grid_size, kept_tokens
from raymae.pipeline.dry_run.activations import Device
from raymae.pipeline.dry_run.memory import Memory, finetune_memory, pretrain_memory
from raymae.pipeline.plan.plan import Plan

TORCH_MB = 650
"""Resident memory of a process that has imported torch."""
CLASSES = 10
"""Of a classifier: their number hardly changes its size."""


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
        if stage.baseline:
            found[name] = cnn_estimate(plan)
        elif stage.kind:
            found[name] = ESTIMATES[stage.kind](plan.plan_of(name), plan.nodes[name].stage)
    return found


def pretrain_estimate(plan: Plan, stage: str) -> str:
    """Clips, steps, kept tokens and memory of pre-training."""
    config, train = plan.config, plan.config.pretrain
    rows = plan.rows(plan.pretrained_on)
    clips = round(pc.sum(rows["weight"]).as_py() or 0)
    steps = ceil(train.epochs * clips / train.global_batch_size)
    frames = crop_frames(train.augment, config.audio)
    grid = grid_size(frames, config.audio.n_mels, config.model.patch_size)
    memory = pretrain_memory(config.audio, config.model, train, likely_device(config))
    return (
        f": {clips} clips{heard(rows, config)}, {steps} steps, "
        f"{kept_tokens(grid, config.model)} of {prod(grid)} tokens kept, "
        f"{memory.gradients / 4e6:.1f} M parameters, about {worker_mb(memory, train, config):,.0f} MB a worker"
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
    memory = finetune_memory(config.audio, config.model, train, CLASSES, likely_device(config))
    megabytes = worker_mb(memory, train, config)
    return f": {labelled} labels{more}, {steps} steps, about {megabytes:,.0f} MB a worker"


def cnn_estimate(plan: Plan) -> str:
    """Steps of the CNN baseline, and how it is left out."""
    others = [name for name in plan.config.evaluate.baselines if name != "cnn"]
    return f": {plan.spec('cnn').steps} steps; {' '.join(['--evaluate.baselines', *others])} leaves it out"


def consistency_estimate(plan: Plan, stage: str) -> str:
    """Clips, steps and memory of consistency training."""
    config, settings = plan.config, plan.config.consistency
    train, rows = settings.training(config.finetune), plan.rows(["train"])
    unlabelled = rows["scene_label"].null_count
    ratio = settings.ratio if unlabelled else 0
    steps = ceil(train.epochs * (len(rows) - unlabelled) / train.global_batch_size)
    memory = finetune_memory(config.audio, config.model, train, CLASSES, likely_device(config))
    return (
        f": {len(rows) - unlabelled} labels and {unlabelled} unlabelled clips, 1 to {ratio} in each of {steps} steps, "
        f"about {worker_mb(memory, train, config, 1 + ratio):,.0f} MB a worker"
    )


ESTIMATES: dict[Kind, Callable[[Plan, str], str]] = {
    "pretrain": pretrain_estimate,
    "finetune": finetune_estimate,
    "consistency": consistency_estimate,
}
"""By training task, from a plan and a stage to a few words."""


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
