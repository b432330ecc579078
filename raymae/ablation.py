"""What each stage adds: the configurations whose fine-tuning starts from elsewhere (`evaluate.ablation`)."""

from __future__ import annotations

from dataclasses import replace

from raymae.config import RANDOM, Ablation, Config


def ablated(config: Config, name: Ablation) -> Config:
    """The same run with another start of its fine-tuning; everything else, its seed too, stays."""
    train, tune = config.pretrain, config.finetune
    if name in ("pool", "pool_train"):
        train, tune = replace(train, pool_only=name == "pool"), replace(tune, init_from=None)
    else:
        start = RANDOM if name == "scratch" else config.evaluate.supervised_from
        train, tune = replace(train, init_from=None), replace(tune, init_from=start)
    # the ablated run is a run of its own, which asks for none
    evaluate = replace(config.evaluate, ablation=(), supervised_from=None)
    return replace(config, pretrain=train, finetune=tune, evaluate=evaluate)
