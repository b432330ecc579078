"""Settings of the uses of unlabelled clips: pseudo-labels and consistency training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from raymae.config.augment import AugmentConfig
from raymae.config.training import FinetuneConfig
from raymae.config.values import require, require_choice, require_share

Rule = Literal["fixed", "flexmatch", "freematch"]

StudentStart = Literal["pretrained", "continued"]


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Which of the teacher's guesses the student is trained on, how, and in how many rounds."""

    rule: Rule = "fixed"
    """fixed: confidence_threshold or coverage, whichever is set; flexmatch: the threshold of each class is
    confidence_threshold, lowered if few guesses of the class reach it (Zhang et al. 2021); freematch: the mean
    confidence, lowered for classes of small mean probability (Wang et al. 2023), with neither setting."""
    confidence_threshold: float | None = 0.9
    """Smallest calibrated probability of an accepted pseudo-label; None: accept by coverage instead."""
    coverage: float | None = None
    """Share of each predicted class's clips that is accepted, most confident first; None: accept by threshold."""
    threshold_floor: float = 0.5
    """Lowest threshold to which flexmatch scales that of a class, at most confidence_threshold. Below a half a guess is
    more likely wrong than right; 0, as in the paper, accepts every guess of a class that has no confident one."""
    max_per_class: int | None = None
    """Most accepted clips of a class, the most confident ones; None: no limit."""
    max_class_ratio: float | None = None
    """Most accepted clips of a class relative to the class with the fewest (but some), the most confident ones; None:
    no limit."""
    max_per_group: int | None = None
    """Most accepted clips of a group, the most confident ones, since clips of one recording are nearly the same; None:
    no limit."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the student is trained on the predicted class; soft: on the calibrated probabilities of all classes."""
    sharpening: float = 1.0
    """Temperature of soft labels, on top of calibration; below 1 it favours the likelier classes (MixMatch: 0.5)."""
    views: int = 0
    """Random-EQ views of a clip (other recording devices, as finetune.augment.eq_* draws them) over which the teacher
    averages, besides the clip raw and without its band mean; 0: the raw clip alone. No effect with
    finetune.subtract_band_mean, which removes random EQ."""
    weight: float = 1.0
    """What a pseudo-labelled clip counts in the student's loss, a labelled one counts 1."""
    labelled_share: float | None = None
    """Share of labelled clips in every mixing group of the student's training, the same count in each; None: as they
    come, each clip once an epoch. Steps stay as many, so labelled clips come more often; finetune.balance is then among
    labelled clips alone."""
    rounds: int = 1
    """Rounds of pseudo-labelling and training a student; each round's teacher is the student of the round before."""
    student_start: StudentStart = "pretrained"
    """Weights that the student of a later round starts from. pretrained: those of the first round's student; continued:
    the whole classifier of the round before. The first round's student always starts as the teacher did."""
    truth: str | None = None
    """Table (filename, scene_label) of true classes of unlabelled training clips, only for scoring pseudo-labels in
    their report: no pseudo-label, student or evaluation changes with it."""

    def __post_init__(self) -> None:
        require_choice("pseudo_label.rule", self.rule, get_args(Rule))
        require_choice("pseudo_label.labels", self.labels, ("hard", "soft"))
        require_choice("pseudo_label.student_start", self.student_start, get_args(StudentStart))
        require(self.sharpening > 0, f"pseudo_label.sharpening = {self.sharpening} must be positive")
        require(
            self.labels == "soft" or self.sharpening == 1,
            f"pseudo_label.sharpening = {self.sharpening} has no effect on hard labels: set pseudo_label.labels = soft",
        )
        self._check_rule()
        threshold, coverage = self.confidence_threshold, self.coverage
        require(
            threshold is None or 0 < threshold < 1,
            f"pseudo_label.confidence_threshold = {threshold} must lie in (0, 1)",
        )
        require(coverage is None or 0 < coverage <= 1, f"pseudo_label.coverage = {coverage} must lie in (0, 1]")
        for name in ("max_per_class", "max_class_ratio", "max_per_group"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"pseudo_label.{name} = {value} must be at least 1, or None")
        require(0 < self.weight < math.inf, f"pseudo_label.weight = {self.weight} must be positive and finite")
        share = self.labelled_share
        require(share is None or 0 < share < 1, f"pseudo_label.labelled_share = {share} must lie in (0, 1)")
        require(self.views >= 0, f"pseudo_label.views = {self.views} must not be negative")
        require(self.rounds >= 1, f"pseudo_label.rounds = {self.rounds} must be at least 1")
        require(
            self.rounds > 1 or self.student_start == "pretrained",
            "pseudo_label.student_start = continued has no effect with pseudo_label.rounds = 1: set it to 2 or more",
        )

    def clips_of(self, group_size: int) -> tuple[int, int]:
        """Labelled and pseudo-labelled clips of a mixing group; ValueError where `labelled_share` is no whole count."""
        assert self.labelled_share is not None
        labelled = self.labelled_share * group_size
        require(
            0 < round(labelled) < group_size and math.isclose(labelled, round(labelled)),
            f"pseudo_label.labelled_share = {self.labelled_share} must be a multiple of 1/{group_size}, below 1: a "
            f"mixing group of fine-tuning has {group_size} clips (finetune.mixing_group)",
        )
        return round(labelled), group_size - round(labelled)

    def _check_rule(self) -> None:
        floor, default = self.threshold_floor, type(self).threshold_floor
        require(0 <= floor < 1, f"pseudo_label.threshold_floor = {floor} must lie in [0, 1)")
        require(
            self.rule == "flexmatch" or floor == default,
            f"pseudo_label.threshold_floor = {floor} has no effect with pseudo_label.rule = {self.rule}, only with "
            f"flexmatch: leave it at {default}",
        )
        now = f"(now {self.confidence_threshold} and {self.coverage})"
        both = "pseudo_label.confidence_threshold and pseudo_label.coverage"
        if self.rule == "fixed":
            one = (self.confidence_threshold is None) != (self.coverage is None)
            require(one, f"set one of {both}, the other to None {now}")
        elif self.rule == "flexmatch":
            right = self.confidence_threshold is not None and self.coverage is None
            require(right, f"pseudo_label.rule = flexmatch scales a threshold: of {both} set the first alone {now}")
        else:
            right = self.confidence_threshold is None and self.coverage is None
            require(right, f"pseudo_label.rule = freematch finds its own thresholds: set {both} to None {now}")


Method = Literal["fixmatch", "freematch", "softmatch"]

Unlabelled = Literal["pseudo_labels", "consistency"]
"""A use of the unlabelled training clips."""

SHARED = ("crop_seconds", "roll_p", "gain_db", "mixup_p", "mixup_alpha")
"""Augmentations that are not part of a strong view: its geometry is that of the weak view, and mixup is for labels."""

ONLY_FOR: dict[str, tuple[Method, ...]] = {
    "confidence_threshold": ("fixmatch",),
    "momentum": ("freematch", "softmatch"),
    "n_sigma": ("softmatch",),
    "fairness_weight": ("freematch",),
}
"""By setting, the methods that read it, if not all do."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Training on labelled and unlabelled clips at once: the prediction for a clip as it is (weak view) is the target
    for the same crop through another device and with masks (strong view). Optimiser, batches of labelled clips and
    their augmentation are those of finetune; so is the geometry (crop, roll, gain) of the unlabelled clips."""

    method: Method = "fixmatch"
    """Which guesses count. fixmatch: those of at least confidence_threshold (Sohn et al. 2020); freematch: those above
    a threshold for each class that follows the training (Wang et al. 2023); softmatch: all, less confident ones with
    less weight (Chen et al. 2023)."""
    start: Literal["finetune", "pretrain"] = "finetune"
    """finetune: start from the fine-tuned classifier; pretrain: from the pre-trained (or given) encoder with a new
    head."""
    teacher: Literal["self", "ema"] = "self"
    """Source of the targets. self: the model itself (all three papers); ema: the moving average of its weights
    (finetune.ema_decay)."""
    epochs: float = 60
    """Passes over the labelled clips; finetune's epochs of warm-up (and of training the head alone, if it is new) are
    scaled with them."""
    ratio: int = 3
    """Unlabelled clips per labelled clip in every mixing group (FixMatch's mu, 7 there)."""
    micro_batch_size: int | None = None
    """Most labelled clips per forward pass, to which their unlabelled clips are added; None: that of finetune."""
    lr_scale: float = 1.0
    """Learning rate relative to that of finetune."""
    weight: float = 1.0
    """Weight of the loss on unlabelled clips."""
    confidence_threshold: float = 0.95
    """Smallest probability of a guess that counts, for fixmatch. Label smoothing keeps probabilities near 1 minus its
    share: with finetune.label_smoothing = 0.1 few reach 0.95."""
    momentum: float = 0.95
    """Momentum per step of the running means of confidences and classes, for freematch and softmatch; 0.999 in the
    papers, whose runs take a million steps and not some hundreds."""
    n_sigma: float = 2.0
    """Deviations of the confidence in one of softmatch's Gaussian: 2 in its authors' code, 1 in the paper's formula,
    which gives less confident guesses more weight."""
    fairness_weight: float = 0.01
    """Weight of freematch's fairness loss, which keeps the guesses spread over the classes."""
    strong: AugmentConfig = AugmentConfig(eq_p=1.0, mixstyle_p=0.4, freq_mask_param=48, time_mask_param=96)
    """Augmentation of the strong view of an unlabelled clip; the structured masks of finetune are added. Random EQ
    alone is undone by finetune.subtract_band_mean."""

    def __post_init__(self) -> None:
        require_choice("consistency.method", self.method, get_args(Method))
        require_choice("consistency.start", self.start, ("finetune", "pretrain"))
        require_choice("consistency.teacher", self.teacher, ("self", "ema"))
        require_share("consistency.momentum", self.momentum)
        for name in ("epochs", "lr_scale", "weight", "n_sigma"):
            require(getattr(self, name) > 0, f"consistency.{name} = {getattr(self, name)} must be positive")
        require(
            self.ratio >= 1, f"consistency.ratio = {self.ratio} must be at least 1 unlabelled clip per labelled clip"
        )
        micro = self.micro_batch_size
        require(micro is None or micro >= 1, f"consistency.micro_batch_size = {micro} must be at least 1")
        threshold = self.confidence_threshold
        require(0 < threshold < 1, f"consistency.confidence_threshold = {threshold} must lie in (0, 1)")
        fairness = self.fairness_weight
        require(fairness >= 0, f"consistency.fairness_weight = {fairness} must not be negative")
        for name in SHARED:
            value = getattr(self.strong, name)
            require(
                value == getattr(AugmentConfig(), name),
                f"consistency.strong.{name} = {value} has no effect: both views have the crop, roll and gain of "
                "finetune.augment, and mixup is for labelled clips",
            )
        waveforms = self.strong.of_waveforms
        require(
            not waveforms,
            f"consistency.strong.{waveforms[0] if waveforms else ''} has no effect: both views are made from the same "
            "waveform, which finetune.augment changes",
        )
        for field in fields(self):
            value, methods = getattr(self, field.name), ONLY_FOR.get(field.name, (self.method,))
            require(
                self.method in methods or value == field.default,
                f"consistency.{field.name} = {value} has no effect with consistency.method = {self.method}, only with "
                f"{' or '.join(methods)}: leave it at {field.default}",
            )

    def training(self, finetune: FinetuneConfig) -> FinetuneConfig:
        """The section that the training loop reads: that of fine-tuning with what differs here; batches of labelled
        clips."""
        share = self.epochs / finetune.epochs
        return replace(
            finetune,
            epochs=self.epochs,
            warmup_epochs=share * finetune.warmup_epochs,
            head_epochs=share * finetune.head_epochs if self.start == "pretrain" else 0.0,
            micro_batch_size=self.micro_batch_size or finetune.micro_batch_size,
            base_lr=self.lr_scale * finetune.base_lr,
            lr=None if finetune.lr is None else self.lr_scale * finetune.lr,
            min_lr=self.lr_scale * finetune.min_lr,
        )
