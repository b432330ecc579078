"""What a sweep tries, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymae.config.values import require, require_choice

SEARCHES = ("grid", "random", "optuna")
TRIALS = 20
"""Points of a search that isn't a grid."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over settings (jobs/sweep.py), judged by split val alone; nothing here changes what a trial computes."""

    space: tuple[str, ...] = ()
    """What is tried, each as FIELD=VALUES with any field's dotted path: a list, model.mask_ratio=0.6,0.75,0.9; or a
    range of numbers, finetune.weight_decay=uniform:0..0.1 (uniform: may be left out) or finetune.lr=log:1e-4..1e-2. A
    value of several parts takes +: model.patch_size=16+16,8+8. The default is model.mask_ratio=0.6,0.75,0.9 by what
    accepts pseudo-labels, pseudo_label.coverage=0.3,0.5,0.7 or pseudo_label.confidence_threshold=0.7,0.8,0.9 (in
    consistency training consistency.confidence_threshold=0.8,0.9,0.95), as far as the recipe has them."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination of the lists; random: points drawn with `seed`; optuna: Optuna's TPE, which draws where
    the finished trials were good."""
    trials: int | None = None
    """Points of the searches random and optuna; the default is 20."""
    early_stopping: bool = True
    """Stop trials whose validation is among the worse ones at the same share of the last stage's training (ASHA, Li et
    al. 2020); what they made of shared stages stays."""
    grace: float = 0.4
    """Share of the last stage's training before which no trial is stopped."""
    reduction: float = 2.0
    """One in so many trials passes each of ASHA's rungs, which lie as many times apart."""
    max_concurrent: int | None = None
    """Most trials at a time; the default is what the cluster has room for."""
    cpus_per_trial: float = 1.0
    """CPUs reserved for each trial, which takes as many threads."""
    gpus_per_trial: float | None = None
    """GPUs reserved for each trial, or a share of one; the default is 1 where the cluster has some."""

    def __post_init__(self) -> None:
        require_choice("sweep.search", self.search, SEARCHES)
        require(
            self.trials is None or self.search != "grid",
            f"sweep.trials = {self.trials} has no effect on sweep.search = grid, which tries every combination: choose "
            "random or optuna",
        )
        for name in ("trials", "max_concurrent"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"sweep.{name} = {value} must be at least 1")
        require(0 < self.grace < 1, f"sweep.grace = {self.grace} must lie in (0, 1)")
        require(self.reduction > 1, f"sweep.reduction = {self.reduction} must be larger than 1")
        require(self.cpus_per_trial > 0, f"sweep.cpus_per_trial = {self.cpus_per_trial} must be positive")
        gpus = self.gpus_per_trial
        require(gpus is None or gpus >= 0, f"sweep.gpus_per_trial = {gpus} must not be negative")
