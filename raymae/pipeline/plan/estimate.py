"""Estimate what the stages of a plan take, from the settings alone and without torch, which takes seconds to import:
clips and steps. `raymae.pipeline.plan.sizes` adds memory and tokens."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import Config
from raymae.config.stages import STAGES, Kind
from raymae.pipeline.plan.cnn_steps import fixed_cnn_steps
from raymae.pipeline.plan.plan import Plan


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
    """Clips and steps of pre-training."""
    config, train = plan.config, plan.config.pretrain
    rows = plan.rows(plan.pretrained_on)
    clips = round(pc.sum(rows["weight"]).as_py() or 0)
    steps = ceil(train.epochs * clips / train.global_batch_size)
    return f": {clips} clips{heard(rows, config)}, {steps} steps"


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
    """Clips and steps of fine-tuning."""
    rows, train = plan.rows(["train"]), plan.config.finetune
    labelled = len(rows) - rows["scene_label"].null_count
    steps = ceil(train.epochs * labelled / train.global_batch_size)
    more = " and the accepted pseudo-labels, at least" if stage == "student" else ""
    what = f"{steps} steps"
    if train.head_init == "logistic":
        what = (
            f"the head from a logistic regression on the frozen encoder, then {steps} steps of all (rate {train.lr:g})"
        )
    return f": {labelled} labels{more}, {what}"


def cnn_estimate(plan: Plan) -> str:
    """Steps of the CNN baseline, and how it is left out."""
    others = [name for name in plan.config.evaluate.baselines if name != "cnn"]
    asked = fixed_cnn_steps(plan.config, plan.clips)
    steps = "as many steps as the FLOPs of fine-tuning are enough for" if asked is None else f"{asked} steps"
    return f": {steps}; {' '.join(['--evaluate.baselines', *others])} leaves it out"


def consistency_estimate(plan: Plan, stage: str) -> str:
    """Clips and steps of consistency training."""
    config, settings = plan.config, plan.config.consistency
    train, rows = settings.training(config.finetune), plan.rows(["train"])
    unlabelled = rows["scene_label"].null_count
    ratio = settings.ratio if unlabelled else 0
    steps = ceil(train.epochs * (len(rows) - unlabelled) / train.global_batch_size)
    return f": {len(rows) - unlabelled} labels and {unlabelled} unlabelled clips, 1 to {ratio} in each of {steps} steps"


ESTIMATES: dict[Kind, Callable[[Plan, str], str]] = {
    "pretrain": pretrain_estimate,
    "finetune": finetune_estimate,
    "consistency": consistency_estimate,
}
"""By training task, from a plan and a stage to a few words."""
