"""Pseudo-labels: which of a teacher's guesses teach the student, how, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.values import require, require_choice

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
    centres its input (finetune.centre), which takes the colours off again."""
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
