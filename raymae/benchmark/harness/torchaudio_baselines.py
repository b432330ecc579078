"""Baselines written with torch, torchaudio and soundfile, in a direct and in tuned forms.

Imported by the workers of the baselines' DataLoaders; needs torch and torchaudio, but not Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchaudio.compliance.kaldi import get_mel_banks

from raymae.config import AudioConfig


def kaldi_bank(config: AudioConfig) -> torch.Tensor:
    """Kaldi mel filters of torchaudio (n_mels, n_fft // 2 + 1), dense."""
    bank, _ = get_mel_banks(
        config.n_mels, config.n_fft, config.sample_rate, config.f_min, config.f_high, 100.0, -500.0, 1.0
    )
    return torch.nn.functional.pad(bank, (0, 1))


class TorchLogMel:
    """Direct implementation of the front end: torch.stft, |X|^2, dense product with torchaudio's Kaldi mel bank.

    Supports only the paper's framing, window, mel scale and floor; AssertionError for others.
    """

    def __init__(self, config: AudioConfig) -> None:
        kinds = (config.framing, config.window, config.mel_scale, config.log_floor)
        assert kinds == ("centred", "symmetric", "kaldi", "add"), kinds
        self.config = config
        self.bank = kaldi_bank(config)
        self.window = torch.hann_window(config.win_length, periodic=False)

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveform (n_samples,) to log-mel (T, F)."""
        mel = self.bank @ self.power(self.emphasise(waveform))
        return ((torch.log(mel + self.config.log_offset) - self.config.norm_mean) / self.config.norm_scale).T

    def emphasise(self, waveform: torch.Tensor) -> torch.Tensor:
        """Apply the pre-emphasis of the front end."""
        return waveform[1:] - self.config.pre_emphasis * waveform[:-1] if self.config.pre_emphasis else waveform

    def stft(self, waveform: torch.Tensor) -> torch.Tensor:
        """Complex spectrum (n_fft // 2 + 1, T)."""
        config = self.config
        return torch.stft(
            waveform, config.n_fft, config.hop_length, config.win_length, self.window, center=True, return_complex=True
        )

    def power(self, waveform: torch.Tensor) -> torch.Tensor:
        """Power spectrum (n_fft // 2 + 1, T)."""
        return self.stft(waveform).abs().square()


class TunedLogMel(TorchLogMel):
    """`TorchLogMel` without square roots and with every step in place: the fastest form in torch."""

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveform (n_samples,) to log-mel (T, F)."""
        spectrum = self.stft(self.emphasise(waveform))
        mel = self.bank @ spectrum.real.square().add_(spectrum.imag.square())
        return mel.add_(self.config.log_offset).log_().sub_(self.config.norm_mean).div_(self.config.norm_scale).T


class TransformsLogMel(TorchLogMel):
    """`TorchLogMel` from torchaudio.transforms: Spectrogram, and MelScale with the Kaldi bank."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        bins = config.n_fft // 2 + 1
        self.spectrogram = torchaudio.transforms.Spectrogram(
            config.n_fft, config.win_length, config.hop_length, window_fn=lambda n: torch.hann_window(n, periodic=False)
        )
        self.mel_scale = torchaudio.transforms.MelScale(
            config.n_mels, config.sample_rate, config.f_min, config.f_high, bins
        )
        self.mel_scale.fb = self.bank.T.contiguous()

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveform (n_samples,) to log-mel (T, F)."""
        mel = self.mel_scale(self.spectrogram(self.emphasise(waveform)))
        return ((torch.log(mel + self.config.log_offset) - self.config.norm_mean) / self.config.norm_scale).T


class TorchChain:
    """File to log-mel: soundfile, torchaudio.transforms.Resample with its defaults, and `TorchLogMel`."""

    def __init__(self, config: AudioConfig, sample_rate: int) -> None:
        self.log_mel = TorchLogMel(config)
        self.resample = torchaudio.transforms.Resample(sample_rate, config.sample_rate)

    def __call__(self, path: str) -> torch.Tensor:
        """Log-mel (T, F) of a mono file."""
        samples, _ = soundfile.read(path, dtype="float32")
        return self.log_mel(self.resample(torch.from_numpy(samples)))

    def window(self, path: str, start: float, seconds: float) -> torch.Tensor:
        """Log-mel (T, F) of `seconds` from `start` on of a mono file."""
        with soundfile.SoundFile(path) as file:
            file.seek(round(start * file.samplerate))
            samples = file.read(round(seconds * file.samplerate), dtype="float32")
        return self.log_mel(self.resample(torch.from_numpy(samples)))


@dataclass(frozen=True)
class Featurized(Dataset):
    """Dataset that writes one .npy of float16 log-mels per recording; an item is its number of frames."""

    paths: list[str]
    folder: Path
    config: AudioConfig
    sample_rate: int

    def __getitem__(self, index: int) -> int:
        torch.set_num_threads(1)
        if "chain" not in self.__dict__:  # once per worker
            object.__setattr__(self, "chain", TorchChain(self.config, self.sample_rate))
        log_mel = self.__dict__["chain"](self.paths[index]).numpy().astype(np.float16)
        np.save(self.folder / f"{index:05d}.npy", log_mel)
        return len(log_mel)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Stored(Dataset):
    """Dataset that reads one .npy of float16 log-mels per clip."""

    folder: Path
    count: int

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        log_mel: NDArray[np.float16] = np.load(self.folder / f"{index:05d}.npy")
        return log_mel

    def __len__(self) -> int:
        return self.count


class EpochSampler:
    """Sampler whose next epoch yields the current `indices`."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def loader(dataset: Dataset, sampler: EpochSampler, batch_size: int, workers: int) -> DataLoader:
    """DataLoader with persistent workers, which are spawned because Ray's threads rule out a fork."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,  # type: ignore[arg-type]
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
