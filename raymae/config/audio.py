"""Settings of the front end, and whole front ends by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.data import MAX_CLIP_SAMPLES, MAX_FFT, MAX_MELS, MAX_VALUES
from raymae.config.values import require, require_choice, require_share

Framing = Literal["centred", "kaldi"]

Window = Literal["symmetric", "periodic"]

MelScale = Literal["kaldi", "slaney"]

LogFloor = Literal["add", "clamp"]


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The front end: waveform to log-mel. The defaults are the paper's (section 3, with the authors' public code).

    `FRONT_ENDS` holds others whole.
    """

    sample_rate: int = 32_000
    """Hz; every recording is resampled to it."""
    n_fft: int = 4096
    """Length of the FFT, samples."""
    win_length: int = 3072
    """Length of the Hann window, samples; zero-padded to n_fft."""
    hop_length: int = 500
    """Samples from frame to frame."""
    framing: Framing = "centred"
    """centred: frame i lies around sample i x hop_length, beyond its ends the waveform is reflected; kaldi: frames lie
    wholly inside (snip_edges) and each is freed of its mean, then pre-emphasised by itself."""
    window: Window = "symmetric"
    """symmetric: the Hann window's two ends are zero; periodic: only the first is (librosa's, torch's default)."""
    n_mels: int = 256
    """Mel bands."""
    f_min: float = 0.0
    """Lower edge of the lowest mel band, Hz."""
    f_max: float | None = None
    """Upper edge of the highest mel band, Hz; the default is half the sample rate."""
    mel_scale: MelScale = "kaldi"
    """kaldi: triangles of peak 1 on 1127 ln(1 + f / 700); slaney: triangles in Hz of area 1, spaced evenly up to 1 kHz
    and by equal ratios above it (librosa's default)."""
    pre_emphasis: float = 0.97
    """a in y[n] = x[n + 1] - a x[n], or with Kaldi's framing in y[n] = x[n] - a x[n - 1] and y[0] = (1 - a) x[0] of
    each frame; 0 switches it off."""
    log_offset: float = 1e-5
    """Keeps the logarithm of the mel power finite, as log_floor says."""
    log_floor: LogFloor = "add"
    """add: log(power + log_offset); clamp: log(max(power, log_offset))."""
    norm_mean: float = -4.5
    """Subtracted from the log-mel."""
    norm_scale: float = 5.0
    """The log-mel is divided by it."""
    clip_seconds: float = 10.0
    """Clips are cut or padded to this length, seconds."""

    def __post_init__(self) -> None:
        require(self.sample_rate > 0, f"audio.sample_rate = {self.sample_rate} must be positive")
        require_choice("audio.framing", self.framing, get_args(Framing))
        require_choice("audio.window", self.window, get_args(Window))
        require_choice("audio.mel_scale", self.mel_scale, get_args(MelScale))
        require_choice("audio.log_floor", self.log_floor, get_args(LogFloor))
        require(  # a symmetric Hann window of 2 samples is all zero
            3 <= self.win_length <= self.n_fft,
            f"audio.win_length = {self.win_length} must lie between 3 and audio.n_fft = {self.n_fft}",
        )
        require(self.n_fft <= MAX_FFT, f"audio.n_fft = {self.n_fft} must not exceed {MAX_FFT}")
        require(self.n_fft % 2 == 0, f"audio.n_fft = {self.n_fft} must be even")
        require(self.hop_length >= 1, f"audio.hop_length = {self.hop_length} must be at least 1")
        require(1 <= self.n_mels <= MAX_MELS, f"audio.n_mels = {self.n_mels} must lie between 1 and {MAX_MELS}")
        require(
            0 <= self.f_min < self.f_high <= self.sample_rate / 2,
            f"audio.f_min = {self.f_min} and f_max = {self.f_high} must satisfy "
            f"0 <= f_min < f_max <= sample_rate / 2 = {self.sample_rate / 2}",
        )
        require_share("audio.pre_emphasis", self.pre_emphasis)
        require(  # below, float32 rounds it to 0 or nearly so
            1e-37 <= self.log_offset < math.inf,
            f"audio.log_offset = {self.log_offset} must be finite and at least 1e-37",
        )
        require(math.isfinite(self.norm_mean), f"audio.norm_mean = {self.norm_mean} must be finite")
        require(0 < self.norm_scale < math.inf, f"audio.norm_scale = {self.norm_scale} must be positive and finite")
        require(
            self.clip_seconds * self.sample_rate <= MAX_CLIP_SAMPLES and self.n_samples > self.n_fft,
            f"audio.clip_seconds = {self.clip_seconds} must be longer than n_fft = {self.n_fft} samples and not longer "
            f"than {MAX_CLIP_SAMPLES}",
        )
        require(
            self.n_frames * self.n_mels <= MAX_VALUES,
            f"audio.hop_length = {self.hop_length} and n_mels = {self.n_mels} give clips more than {MAX_VALUES} values",
        )

    @property
    def f_high(self) -> float:
        """f_max with its default filled in, Hz."""
        return self.sample_rate / 2 if self.f_max is None else self.f_max

    @property
    def n_samples(self) -> int:
        """Samples of a whole clip."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames of a whole clip."""
        return self.frames(self.n_samples)

    def frames_of(self, seconds: float | None) -> int:
        """Frames of a part of a clip, at most all of them; None is the whole clip.

        Kaldi's framing loses up to a window at the end: a part as long as the clip has no more frames than it.
        """
        return (
            self.n_frames
            if seconds is None
            else min(self.n_frames, round(seconds * self.sample_rate / self.hop_length))
        )

    def frames(self, n_samples: int) -> int:
        """Frames of a waveform of `n_samples`; even an empty one has one.

        Centred: one per hop of what pre-emphasis leaves, and one. Kaldi: as many as fit in.
        """
        if self.framing == "kaldi":
            return 1 + max(0, n_samples - self.win_length) // self.hop_length
        return 1 + max(0, n_samples - (self.pre_emphasis > 0)) // self.hop_length

    @property
    def silence(self) -> float:
        """The normalised value of a band without any energy: what padding holds."""
        return (math.log(self.log_offset) - self.norm_mean) / self.norm_scale


FRONT_ENDS = {
    # Cai & Li, section 3: 10 s are 640 frames.
    "paper": AudioConfig(),
    # torchaudio.compliance.kaldi.fbank as Audio-MAE's dataset.py calls it (htk_compat, hanning, 128 bands, no dither,
    # 10 ms), with its AudioSet mean and twice its standard deviation. The mean that it takes off the whole recording
    # first is part of each frame's. Floor: the epsilon of float32. Audio-MAE cuts or pads to 1,024 frames; 10.255 s
    # have as many, AudioSet's 10 s have 998.
    "audiomae": AudioConfig(
        sample_rate=16_000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        framing="kaldi",
        n_mels=128,
        f_min=20.0,
        log_offset=2.0**-23,
        log_floor="clamp",
        norm_mean=-4.2677393,
        norm_scale=2 * 4.5689974,
        clip_seconds=10.255,
    ),
    # The 64 bands of the CAS 2023 challenge's baseline: 40 ms windows, 20 ms apart. It takes decibels of a magnitude, a
    # known defect: this is the natural logarithm of the power. The offset lies 6 dB above the rounding noise of 16 bit
    # samples (2.4e-9 in each band); mean and scale are mean and deviation over 100 clips of ESC-10, rounded.
    "cas_baseline": AudioConfig(
        sample_rate=44_100,
        n_fft=2048,
        win_length=1764,
        hop_length=882,
        window="periodic",
        n_mels=64,
        f_min=10.0,
        f_max=22_050.0,
        mel_scale="slaney",
        pre_emphasis=0.0,
        log_offset=1e-8,
        norm_mean=-6.5,
        norm_scale=6.0,
    ),
}
"""Whole front ends by name; a recipe takes one, or `dataclasses.replace`s some of its fields."""
