"""The length of the CNN baseline's training, which no clock decides: a result repeats on every machine."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import Config
from raymae.datasets.rows import class_names, clips_of, rows_of


def fixed_cnn_steps(config: Config, clips: pa.Table) -> int | None:
    """Steps of the CNN baseline where the settings and the number of clips say them; None where FLOPs have to be
    counted, which takes torch."""
    evaluate, finetune, train = config.evaluate, config.finetune, config.pretrain
    if evaluate.cnn_steps is not None or evaluate.cnn_most_steps is None:
        return evaluate.cnn_steps
    if finetune.init_from:  # pre-trained elsewhere: nobody knows with how many clips
        return evaluate.cnn_most_steps
    rows = clips_of(clips, ["pool"] if train.pool_only else ["pool", "train"])
    labelled = len(rows_of(clips, "train", labelled=True))
    seen = train.epochs * (pc.sum(rows["weight"]).as_py() or 0) + finetune.epochs * labelled
    return max(1, min(evaluate.cnn_most_steps, int(seen / finetune.global_batch_size)))


def cnn_steps(config: Config, clips: pa.Table) -> int:
    """Steps of the CNN baseline.

    Without `evaluate.cnn_steps` or `cnn_most_steps` they need the FLOPs of fine-tuning at most, and are as many passes
    over the labelled clips at most: where the encoder is large, its FLOPs would be thousands of passes of the CNN.
    """
    fixed = fixed_cnn_steps(config, clips)
    if fixed is not None:
        return fixed
    from raymae.pipeline.dry_run.cost import classifier_flops, cnn_flops  # builds the networks

    evaluate, finetune = config.evaluate, config.finetune
    labelled, classes = len(rows_of(clips, "train", labelled=True)), len(class_names(clips, finetune.labels))
    crop_seconds = evaluate.cnn_crop_seconds or finetune.augment.crop_seconds
    own = replace(finetune, augment=replace(finetune.augment, crop_seconds=crop_seconds))
    flops = classifier_flops(config.audio, config.model, finetune)
    share = min(1.0, flops / cnn_flops(config.audio, own, evaluate.cnn, classes))
    return max(1, int(share * finetune.epochs * labelled / finetune.global_batch_size))
