"""`LogMel` in torch: log-mels of a batch of waveforms on any device, within 1e-3 of those of the CPU.

Nothing is read back: the lengths of the waveforms are a tensor, too, and choose frames by arithmetic alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymae.audio.logmel import hann_window, mel_bank
from raymae.config import AudioConfig
from raymae.models.precision import full_precision

FRAMES_AT_ONCE = 2**14
"""Frames that are transformed at once: 0.7 GB of frames and spectra at an FFT of 4096."""


class DeviceLogMel(nn.Module):
    """Waveforms (B, n) and their valid samples (B,) to normalised log-mels (B, T, F) and their valid frames (B,).

    T is `config.frames(n)`. Frames after a waveform's own are silence, as after `raymae.audio.logmel.fit_length`; all
    others are those of `raymae.audio.logmel.LogMel` for the valid samples alone, whatever follows them.
    """

    window: Tensor
    bank: Tensor
    offset: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.kaldi = config.framing == "kaldi"
        self.register_buffer("window", torch.from_numpy(hann_window(config)), persistent=False)
        self.register_buffer("bank", torch.from_numpy(mel_bank(config).T.copy()), persistent=False)
        # one for every band: of a single number near 0 the exporter to ONNX would say that adding it changes nothing
        self.register_buffer("offset", torch.full((config.n_mels,), config.log_offset), persistent=False)
        self.lag = int(config.pre_emphasis > 0 and not self.kaldi)
        """Samples that pre-emphasis takes off a waveform."""
        self.shortest = config.win_length if self.kaldi else config.n_fft // 2 + 1 + self.lag

    @torch.no_grad()
    def forward(self, waveforms: Tensor, valid_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels (B, T, F) float32 and valid frames (B,) of waveforms (B, n) float32."""
        size = max(1, FRAMES_AT_ONCE // self.config.frames(waveforms.shape[1]))
        parts = zip(waveforms.split(size), valid_samples.split(size), strict=True)
        return torch.cat([self.at_once(*part) for part in parts]), self.frames(valid_samples)

    def at_once(self, waveforms: Tensor, valid_samples: Tensor) -> Tensor:
        """The log-mels (B, T, F) of all waveforms (B, n) at once."""
        n_frames = self.config.frames(waveforms.shape[1])
        with full_precision(waveforms):
            found = self._log_mel(self._samples(waveforms, valid_samples), n_frames)
        padding = torch.arange(n_frames, device=found.device) >= self.frames(valid_samples)[:, None]
        return found.masked_fill_(padding[:, :, None], self.config.silence)

    def frames(self, valid_samples: Tensor) -> Tensor:
        """Frames (B,) of waveforms of so many samples (B,), as `AudioConfig.frames`."""
        lost = self.config.win_length if self.kaldi else self.lag
        return 1 + torch.div((valid_samples - lost).clamp(min=0), self.config.hop_length, rounding_mode="floor")

    def _samples(self, waveforms: Tensor, valid_samples: Tensor) -> Tensor:
        """Waveforms from the first sample of the first frame's window, with what all frames of all of them need."""
        config, n = self.config, max(waveforms.shape[1], self.shortest)
        waveforms = nn.functional.pad(waveforms, (0, n - waveforms.shape[1]))
        waveforms = waveforms.masked_fill(torch.arange(n, device=waveforms.device) >= valid_samples[:, None], 0.0)
        if self.kaldi:
            return waveforms
        if self.lag:
            waveforms = waveforms[:, 1:] - config.pre_emphasis * waveforms[:, :-1]
        half = config.n_fft // 2
        end = valid_samples.clamp(min=self.shortest)[:, None] - self.lag
        back = torch.arange(half, device=waveforms.device)
        reflected = waveforms.gather(1, end - 2 - back)
        samples = torch.cat([waveforms[:, 1 : half + 1].flip(1), nn.functional.pad(waveforms, (0, half))], 1)
        return samples.scatter_(1, half + end + back, reflected)[:, (config.n_fft - config.win_length) // 2 :]

    def _log_mel(self, samples: Tensor, n_frames: int) -> Tensor:
        """Log-mels (B, T, F) of samples from the first frame's window on."""
        config = self.config
        frames = samples.unfold(1, config.win_length, config.hop_length)[:, :n_frames]
        if self.kaldi:
            frames = frames - frames.mean(2, keepdim=True)
            before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], 2)
            frames = frames - config.pre_emphasis * before
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window, config.n_fft))
        power = spectrum.square().sum(3)
        mel = power @ self.bank
        mel = mel + self.offset if config.log_floor == "add" else mel.clamp(min=config.log_offset)
        return mel.log_().sub_(config.norm_mean).div_(config.norm_scale)
