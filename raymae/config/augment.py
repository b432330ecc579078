"""Augmentation settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raymae.config.values import require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of log-mel batches in training, each off by default (p = 0 is the identity)."""

    crop_seconds: float | None = None
    """Length of the random crop, seconds; None: the whole clip."""
    roll_p: float = 0.0
    """Probability of rolling a clip in time by a random number of frames."""
    gain_db: float = 0.0
    """Largest random gain in either direction, dB."""
    eq_p: float = 0.0
    """Probability of a random EQ: a smooth frequency response, as of another recording device."""
    eq_nats: float = 3.0
    """Standard deviation of the random EQ at its knots, nats of power."""
    eq_knots: int = 8
    """Number of knots of the random EQ, from the lowest to the highest band."""
    responses: tuple[str, ...] = ()
    """Impulse responses of real devices: audio files of any sample rate, or folders, globs or URLs of them. Their
    content, not their path, is part of a stage's key."""
    response_p: float | None = None
    """Probability that a clip gets one of the responses, drawn for each clip; None: 0.5 if there are responses."""
    mixup_p: float = 0.0
    """Probability that the clips of a mixing group are mixed with one another (fine-tuning only)."""
    mixup_alpha: float = 10.0
    """Mixup weights are drawn from Beta(alpha, alpha)."""
    mixstyle_p: float = 0.0
    """Probability of Freq-MixStyle, which mixes the band statistics of two clips of a mixing group."""
    mixstyle_alpha: float = 0.4
    """Freq-MixStyle weights are drawn from Beta(alpha, alpha)."""
    freq_mask_param: int = 0
    """SpecAugment: largest width of the one frequency mask, mel bands; 0: no mask."""
    time_mask_param: int = 0
    """SpecAugment: largest width of the one time mask, frames; 0: no mask."""

    def __post_init__(self) -> None:
        for name in ("roll_p", "eq_p", "response_p", "mixup_p", "mixstyle_p"):
            p = getattr(self, name)
            require(p is None or 0 <= p <= 1, f"augment.{name} = {p} is a probability: 0 to 1")
        require(
            bool(self.responses) or not self.response_p,
            f"augment.response_p = {self.response_p} needs augment.responses: files or folders of impulse responses",
        )
        for name in ("gain_db", "eq_nats", "freq_mask_param", "time_mask_param"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"augment.{name} = {value} must be finite and not negative")
        for name in ("mixup_alpha", "mixstyle_alpha"):
            require(getattr(self, name) > 0, f"augment.{name} = {getattr(self, name)} must be positive")
        require(self.eq_knots >= 2, f"augment.eq_knots = {self.eq_knots} must be at least 2")

    @property
    def response_share(self) -> float:
        """response_p with its default filled in; 0 without responses."""
        return (0.5 if self.responses else 0.0) if self.response_p is None else self.response_p
