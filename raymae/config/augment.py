"""Settings of augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raymae.config.values import require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of log-mel batches in training, each off by default (p = 0 is the identity)."""

    crop_seconds: float | None = None
    """Length of a random crop, seconds; the default is the whole clip."""
    roll_p: float = 0.0
    """Probability of rolling a clip in time by a random number of frames."""
    gain_db: float = 0.0
    """Largest random gain, dB in either direction."""
    eq_p: float = 0.0
    """Probability of a random smooth frequency response (another recording device)."""
    eq_nats: float = 3.0
    """Standard deviation of the response at its knots, nats of power."""
    eq_knots: int = 8
    """Knots of the response from the lowest to the highest band."""
    responses: tuple[str, ...] = ()
    """Impulse responses of real devices: audio files of any rate, folders, globs or URLs of them; what they hold, and
    not where they lie, is part of a stage's key."""
    response_p: float | None = None
    """Probability of one of the responses, drawn for each clip; the default is 0.5 where there are some."""
    mixup_p: float = 0.0
    """Probability that the clips of a micro-batch are mixed with one another (fine-tuning only)."""
    mixup_alpha: float = 10.0
    """Mixing weights come from Beta(alpha, alpha)."""
    mixstyle_p: float = 0.0
    """Probability of Freq-MixStyle: band statistics of two clips are mixed."""
    mixstyle_alpha: float = 0.4
    """Its weights come from Beta(alpha, alpha)."""
    freq_mask_param: int = 0
    """SpecAugment: largest number of mel bands in the one stripe that is masked; 0 masks none."""
    time_mask_param: int = 0
    """SpecAugment: largest number of frames in the one stripe that is masked; 0 masks none."""

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
