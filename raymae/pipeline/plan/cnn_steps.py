"""The length of the CNN baseline's training, which no clock decides: a result repeats on every machine."""

from __future__ import annotations

from dataclasses import replace

from raymae.config import Config


def cnn_steps(config: Config, labelled: int, classes: int) -> int:
    """Steps of the CNN baseline for so many labelled clips of so many classes.

    Without `evaluate.cnn_steps` they need the FLOPs of fine-tuning at most, and are as many passes over the clips at
    most: where the encoder is large, its FLOPs would be thousands of passes of the CNN.
    """
    evaluate, finetune = config.evaluate, config.finetune
    if evaluate.cnn_steps is not None:
        return evaluate.cnn_steps
    from raymae.pipeline.dry_run.cost import classifier_flops, cnn_flops  # builds the networks, which takes torch

    crop_seconds = evaluate.cnn_crop_seconds or finetune.augment.crop_seconds
    own = replace(finetune, augment=replace(finetune.augment, crop_seconds=crop_seconds))
    flops = classifier_flops(config.audio, config.model, finetune)
    share = min(1.0, flops / cnn_flops(config.audio, own, evaluate.cnn, classes))
    return max(1, int(share * finetune.epochs * labelled / finetune.global_batch_size))
