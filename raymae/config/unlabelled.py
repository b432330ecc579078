"""Pseudo-labels: which of a teacher's guesses teach the student, how, and how often."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from raymae.config.augment import AugmentConfig
from raymae.config.training import FinetuneConfig
from raymae.config.values import require, require_choice, require_share

Rule = Literal["fixed", "flexmatch", "freematch"]

StudentStart = Literal["pretrained", "continued"]


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Which of the teacher's guesses become labels of the student."""

    rule: Rule = "fixed"
    """fixed: confidence_threshold or coverage, whichever is set. flexmatch: the threshold of each class is
    confidence_threshold, lowered where few guesses of the class reach it (Zhang et al. 2021). freematch: the mean
    confidence, lowered for classes of small mean probability (Wang et al. 2023); it takes neither setting."""
    confidence_threshold: float | None = 0.9
    """Smallest calibrated probability of an accepted pseudo-label; none accepts by coverage instead."""
    coverage: float | None = None
    """Share of each predicted class's clips that is accepted, surest first (instead of a threshold); 1 is all."""
    max_per_class: int | None = None
    """Most accepted clips of a class, the surest; none sets no limit."""
    max_class_ratio: float | None = None
    """Most accepted clips of a class over those of the class that has the fewest (but some), the surest."""
    max_per_group: int | None = None
    """Most accepted clips of a group, the surest: clips of one recording say nearly the same."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the student learns the guessed class; soft: it learns the calibrated probabilities of all classes."""
    sharpening: float = 1.0
    """Temperature of soft labels on top of calibration: below 1 the surer class gains (MixMatch: 0.5)."""
    views: int = 0
    """Coloured views of a clip (other recording devices, as finetune.augment.colour_* draws them) over which the
    teacher averages, beside the clip as it is and centred; 0: the clip as it is alone. Of no use to a model that
    centres its input (finetune.subtract_band_mean), which takes the colours off again."""
    rounds: int = 1
    """How often guessing and learning take turns: the teacher of each round is the student of the round before it."""
    student_start: StudentStart = "pretrained"
    """What a later round's student starts from: pretrained, what the first one does; continued, the whole classifier of
    the round before it. The first round's student always starts as the teacher did."""
    truth: str | None = None
    """Table (filename, scene_label) of true classes of unlabelled training clips. For scoring pseudo-labels in their
    report, nothing else: no pseudo-label, student or evaluation changes with it."""

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
        require(self.views >= 0, f"pseudo_label.views = {self.views} must not be negative")
        require(self.rounds >= 1, f"pseudo_label.rounds = {self.rounds} must be at least 1")
        require(
            self.rounds > 1 or self.student_start == "pretrained",
            "pseudo_label.student_start = continued has no effect with pseudo_label.rounds = 1: set it to 2 or more",
        )

    def _check_rule(self) -> None:
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
"""Augmentations that are no part of a strong view: the cut is that of the weak view, and mixup is for labels."""

ONLY_FOR: dict[str, tuple[Method, ...]] = {
    "confidence_threshold": ("fixmatch",),
    "momentum": ("freematch", "softmatch"),
    "fairness_weight": ("freematch",),
}
"""Settings that some methods don't read."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Training on labelled and unlabelled clips at once: what the classifier says of a clip as it is becomes the target
    of the same cut through another device and with stripes masked. Optimiser, batches of labelled clips and their
    augmentation are those of finetune; so is the cut (crop, roll, gain) of the unlabelled ones."""

    method: Method = "fixmatch"
    """Which guesses count: fixmatch, those of at least confidence_threshold (Sohn et al. 2020); freematch, by a
    threshold for each class that follows the training (Wang et al. 2023); softmatch, all, the less sure with less
    weight (Chen et al. 2023)."""
    start: Literal["finetune", "pretrain"] = "finetune"
    """Start from the fine-tuned classifier, or from the pre-trained (or given) encoder with a new head."""
    teacher: Literal["self", "ema"] = "self"
    """Whose guesses are the targets: the model's own (all three papers) or those of the average of its weights, which
    finetune.ema_decay keeps."""
    epochs: float = 60
    """Passes over the labelled clips; finetune's epochs of warm-up (and of training the head alone, where it is new)
    shrink or grow with them."""
    ratio: int = 3
    """Unlabelled clips for each labelled one, in every micro-batch (FixMatch's mu, 7 there)."""
    micro_batch_size: int | None = None
    """Labelled clips per forward pass, to which their unlabelled ones come; the default is finetune's."""
    lr_scale: float = 1.0
    """Learning rate over that of finetune."""
    weight: float = 1.0
    """Weight of the unlabelled clips' loss."""
    confidence_threshold: float = 0.95
    """Smallest probability of a guess that counts, for fixmatch. Label smoothing keeps probabilities near 1 minus its
    share: with finetune.label_smoothing = 0.1 few reach 0.95."""
    momentum: float = 0.95
    """What running means of confidences and classes keep of themselves in a step, for freematch and softmatch; 0.999 in
    the papers, whose runs take a million steps and not some hundreds."""
    fairness_weight: float = 0.01
    """Weight of freematch's fairness loss, which keeps the guesses spread over the classes."""
    strong: AugmentConfig = AugmentConfig(eq_p=1.0, mixstyle_p=0.4, freq_mask_param=48, time_mask_param=96)
    """What makes the strong view of an unlabelled clip. Structured masks of finetune come on top. What colours alone
    is undone by finetune.subtract_band_mean."""

    def __post_init__(self) -> None:
        require_choice("consistency.method", self.method, get_args(Method))
        require_choice("consistency.start", self.start, ("finetune", "pretrain"))
        require_choice("consistency.teacher", self.teacher, ("self", "ema"))
        require_share("consistency.momentum", self.momentum)
        for name in ("epochs", "lr_scale", "weight"):
            require(getattr(self, name) > 0, f"consistency.{name} = {getattr(self, name)} must be positive")
        require(self.ratio >= 1, f"consistency.ratio = {self.ratio} must be at least 1 unlabelled clip a labelled one")
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
                f"consistency.strong.{name} = {value} has no effect: both views have the cut of finetune.augment, and "
                "mixup is for labelled clips",
            )
        for field in fields(self):
            value, methods = getattr(self, field.name), ONLY_FOR.get(field.name, (self.method,))
            require(
                self.method in methods or value == field.default,
                f"consistency.{field.name} = {value} has no effect with consistency.method = {self.method}, only with "
                f"{' or '.join(methods)}: leave it at {field.default}",
            )

    def training(self, finetune: FinetuneConfig) -> FinetuneConfig:
        """The section that the loop reads: fine-tuning's, with what is different here; batches of labelled clips."""
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
