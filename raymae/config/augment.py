"""Augmentation settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.values import require, require_choice

ResponsesBy = Literal["offsets", "convolution"]

WAVEFORM = ("speed_p", "wave_mix_p", "noise_p")
"""Probabilities of augmentations of the waveform itself, which need audio.device = gpu."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of batches in training, each off by default (p = 0 is the identity): of log-mels and, where the
    training worker makes these from waveforms (audio.device = gpu), of waveforms."""

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
    responses_by: ResponsesBy = "offsets"
    """offsets: a response is what it adds to every band of a log-mel; convolution: the waveform is convolved with it,
    its reverberation included (audio.device = gpu)."""
    speed_p: float = 0.0
    """Probability that a clip is played at one of speed_rates, its pitch changed with it (audio.device = gpu)."""
    speed_rates: tuple[float, ...] = (0.9, 1.1)
    """Rates of speed_p, each a multiple of 0.01; above 1 a clip becomes shorter."""
    wave_mix_p: float = 0.0
    """Probability that the waveforms of a mixing group are mixed with one another, in fine-tuning with their labels,
    as Audio-MAE does; weights as of mixup (audio.device = gpu)."""
    noise_p: float = 0.0
    """Probability of white noise in a clip (audio.device = gpu)."""
    snr_db: tuple[float, float] = (10.0, 40.0)
    """Lowest and highest ratio of a clip's power to that of the noise, dB."""
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
        for name in ("roll_p", "eq_p", "response_p", "mixup_p", "mixstyle_p", *WAVEFORM):
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
        self._check_waveforms()
        require(self.eq_knots >= 2, f"augment.eq_knots = {self.eq_knots} must be at least 2")

    def _check_waveforms(self) -> None:
        """Check the settings of waveforms."""
        require_choice("augment.responses_by", self.responses_by, get_args(ResponsesBy))
        for rate in self.speed_rates:
            require(
                0.5 <= rate <= 2 and rate != 1 and math.isclose(100 * rate, round(100 * rate)),
                f"augment.speed_rates: {rate} must be a multiple of 0.01 from 0.5 to 2, and not 1",
            )
        require(bool(self.speed_rates), "augment.speed_rates must name a rate; speed_p = 0 switches them off")
        lowest, highest = self.snr_db
        require(
            -100 <= lowest <= highest <= 100,
            f"augment.snr_db = {self.snr_db} must be two numbers of dB, the lower one first, from -100 to 100",
        )
        require(
            not (self.wave_mix_p and self.mixup_p),
            f"augment.wave_mix_p = {self.wave_mix_p} and mixup_p = {self.mixup_p} both mix clips: set one to 0",
        )

    @property
    def of_waveforms(self) -> list[str]:
        """The settings in use that need the waveform."""
        found = [name for name in WAVEFORM if getattr(self, name)]
        return found + (["responses_by"] if self.responses_by == "convolution" else [])

    @property
    def response_share(self) -> float:
        """response_p with its default filled in; 0 without responses."""
        return (0.5 if self.responses else 0.0) if self.response_p is None else self.response_p
