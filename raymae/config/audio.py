"""Front-end settings, and complete front ends by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from raymae.config.data import MAX_CLIP_SAMPLES, MAX_FFT, MAX_MELS, MAX_VALUES
from raymae.config.values import require, require_choice, require_share, to_dict

Framing = Literal["centred", "kaldi"]

Window = Literal["symmetric", "periodic"]

MelScale = Literal["kaldi", "slaney"]

LogFloor = Literal["add", "clamp"]

Device = Literal["cpu", "gpu"]

CONSTANT = 1e-3
"""Largest change of a band of the normalised log-mel over time that counts as none: a float16 step."""


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The front end: waveform to log-mel. The defaults are the paper's (section 3, with the authors' public code).

    `FRONT_ENDS` holds further complete front ends.
    """

    sample_rate: int = 32_000
    """Sample rate to which every recording is resampled, Hz."""
    n_fft: int = 4096
    """FFT length, samples."""
    win_length: int = 3072
    """Length of the Hann window, samples; frames are zero-padded to n_fft."""
    hop_length: int = 500
    """Samples from one frame to the next."""
    framing: Framing = "centred"
    """centred: frame i is centred on sample i x hop_length, and the waveform is reflected at its ends; kaldi: frames
    lie wholly inside the waveform (snip_edges), and each has its mean subtracted, then is pre-emphasised by itself."""
    window: Window = "symmetric"
    """symmetric: both ends of the Hann window are zero; periodic: only the first (default of librosa and torch)."""
    n_mels: int = 256
    """Number of mel bands."""
    f_min: float = 0.0
    """Lower edge of the lowest mel band, Hz."""
    f_max: float | None = None
    """Upper edge of the highest mel band, Hz; None: half the sample rate."""
    mel_scale: MelScale = "kaldi"
    """kaldi: triangles of peak 1 on the scale 1127 ln(1 + f / 700); slaney: triangles of area 1 in Hz, spaced evenly up
    to 1 kHz and by equal ratios above (librosa's default)."""
    pre_emphasis: float = 0.97
    """Coefficient a of y[n] = x[n + 1] - a x[n] or, with framing = kaldi, of y[n] = x[n] - a x[n - 1] and
    y[0] = (1 - a) x[0] in each frame; 0 switches it off."""
    log_offset: float = 1e-5
    """Power that keeps the logarithm of the mel power finite; log_floor says how."""
    log_floor: LogFloor = "add"
    """add: log(power + log_offset); clamp: log(max(power, log_offset))."""
    norm_mean: float = -4.5
    """Subtracted from the log-mel."""
    norm_scale: float = 5.0
    """Divisor of the log-mel, after norm_mean is subtracted."""
    clip_seconds: float = 10.0
    """Length to which clips are cut or padded, seconds."""
    device: Device = "cpu"
    """Where training makes log-mels. cpu: where the clips are read; gpu: on the training worker's device, from
    waveforms, within 1e-3 of those of the CPU; augmentations of waveforms need it, and it needs data.store = none."""

    def __post_init__(self) -> None:
        require(self.sample_rate > 0, f"audio.sample_rate = {self.sample_rate} must be positive")
        require_choice("audio.framing", self.framing, get_args(Framing))
        require_choice("audio.window", self.window, get_args(Window))
        require_choice("audio.mel_scale", self.mel_scale, get_args(MelScale))
        require_choice("audio.log_floor", self.log_floor, get_args(LogFloor))
        require_choice("audio.device", self.device, get_args(Device))
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
            f"audio.clip_seconds = {self.clip_seconds} must be longer than audio.n_fft = {self.n_fft} samples, "
            f"{self.n_fft / self.sample_rate:g} s, and not longer than {MAX_CLIP_SAMPLES / self.sample_rate:g} s",
        )
        require(
            self.n_frames * self.n_mels <= MAX_VALUES,
            f"audio.hop_length = {self.hop_length} and n_mels = {self.n_mels} give clips more than {MAX_VALUES} values",
        )

    def front_end(self) -> dict[str, Any]:
        """The settings that decide a log-mel, by name: all but the device that makes it."""
        return {name: value for name, value in to_dict(self).items() if name != "device"}

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
        """Frames in `seconds` of a clip, at most those of the whole clip; None is the whole clip.

        Kaldi's framing loses up to a window at the end, so the count is limited to the frames of the whole clip.
        """
        return (
            self.n_frames
            if seconds is None
            else min(self.n_frames, round(seconds * self.sample_rate / self.hop_length))
        )

    def frames(self, n_samples: int) -> int:
        """Frames of a waveform of `n_samples`, at least one.

        centred: one per whole hop of the pre-emphasised waveform, plus one; kaldi: as many windows as fit.
        """
        if self.framing == "kaldi":
            return 1 + max(0, n_samples - self.win_length) // self.hop_length
        return 1 + max(0, n_samples - (self.pre_emphasis > 0)) // self.hop_length

    @property
    def silence(self) -> float:
        """The normalised value of a band without energy: the value of padding."""
        return (math.log(self.log_offset) - self.norm_mean) / self.norm_scale


FRONT_ENDS = {
    # Cai & Li, section 3: 10 s are 640 frames.
    "paper": AudioConfig(),
    # torchaudio.compliance.kaldi.fbank as Audio-MAE's dataset.py calls it (htk_compat, hanning, 128 bands, no dither,
    # 10 ms), normalised by its AudioSet mean and twice its standard deviation. Audio-MAE also subtracts the mean of the
    # whole recording first; subtracting each frame's mean covers that. The floor is float32's epsilon. Audio-MAE cuts
    # or pads to 1,024 frames, the length of 10.255 s; AudioSet's 10 s have 998.
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
    # The 64 bands of the CAS 2023 challenge's baseline: 40 ms windows, 20 ms apart. The baseline takes decibels of a
    # magnitude, a known defect; this front end takes the natural logarithm of the power. The offset lies 6 dB above the
    # rounding noise of 16-bit samples (2.4e-9 in each band); mean and scale are the mean and standard deviation over
    # 100 clips of ESC-10, rounded.
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
"""Complete front ends by name; a recipe uses one as it is, or with some of its fields replaced."""
