"""`front-end`: log-mels on one core, against torch and torchaudio, and against the FFTs alone as a lower bound."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view

from raymae.audio.decode import FloatArray, load
from raymae.audio.logmel import LogMel, hann_window
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import interleave
from raymae.config import AudioConfig
from raymae.datasets.synthetic.tones import SAMPLE_RATE, recording, write_recording

TOLERANCE = 1e-3
"""Largest accepted difference between two log-mels of the same waveform."""
CHAIN_TOLERANCE = 0.1
"""Largest accepted difference between two chains below `CHAIN_HERTZ`; their resampling filters differ."""
CHAIN_HERTZ = 10_000


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """LogMel, and decode + resample + LogMel, per clip on one core (medians of CPU time, alternating sides).

    `--json` keys: `log_mel_ms`; its baselines `reference_ms` (torch.stft, |X|^2, dense Kaldi bank of torchaudio),
    `tuned_ms` (the same in place, without square roots), `transforms_ms` (torchaudio.transforms), `fft_ms` (bare
    scipy.fft.rfft of the same frames); `wav_ms`, `flac_ms` (load + LogMel) and their baselines `wav_reference_ms`,
    `flac_reference_ms` (soundfile, torchaudio Resample, reference); `decode_ms` (load alone, WAV);
    `largest_difference` between LogMel and its baselines; `chain_difference`, below 10 kHz; `clip_seconds`;
    `clips_per_second` of one core, from WAV.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    repetitions: int = 30
    """Timed calls of each side."""
    clip_seconds: float = 10.0
    """Length of the recording, seconds."""

    def run(self) -> Result:
        """Measure."""
        import torch

        torch.set_num_threads(1)
        config = AudioConfig(clip_seconds=self.clip_seconds)
        with tempfile.TemporaryDirectory() as folder:
            names = {kind: str(Path(folder) / f"recording.{kind}") for kind in ("wav", "flac")}
            for path in names.values():
                write_recording(Path(path), self.clip_seconds, seed=0)
            sides, checks = self._sides(config, names)
            times = {name: 1000 * seconds for name, seconds in interleave(sides, self.repetitions).items()}
        values = {f"{name}_ms": round(value, 3) for name, value in times.items()} | checks
        values |= {"clip_seconds": self.clip_seconds, "clips_per_second": 1000 / times["wav"]}
        return Result("front-end", rows(times), values)

    def _sides(self, config: AudioConfig, names: dict[str, str]) -> tuple[dict[str, Any], dict[str, float]]:
        """The timed calls, and the differences of their outputs; ValueError if these are too large."""
        import torch

        from raymae.benchmark.harness.torchaudio_baselines import TorchChain, TorchLogMel, TransformsLogMel, TunedLogMel

        log_mel, chain = LogMel(config), TorchChain(config, SAMPLE_RATE)
        waveform = recording(self.clip_seconds, seed=0, sample_rate=config.sample_rate)
        tensor = torch.from_numpy(waveform)
        baselines = {"reference": TorchLogMel, "tuned": TunedLogMel, "transforms": TransformsLogMel}
        called = {name: build(config) for name, build in baselines.items()}
        output = log_mel(waveform)
        largest = max(difference(output, baseline(tensor).numpy()) for baseline in called.values())
        require_equal("LogMel", largest, TOLERANCE)

        def from_file(path: str) -> FloatArray:
            return log_mel(load(path, config.sample_rate, seconds=config.clip_seconds))

        low = bands_below(config, CHAIN_HERTZ)
        differences = [difference(from_file(path)[:, :low], chain(path).numpy()[:, :low]) for path in names.values()]
        require_equal("decode + resample + LogMel", max(differences), CHAIN_TOLERANCE)
        sides = {
            "log_mel": partial(log_mel, waveform),
            **{name: partial(baseline, tensor) for name, baseline in called.items()},
            "fft": partial(bare_ffts, windowed(log_mel, waveform)),
        }
        sides["decode"] = partial(load, names["wav"], config.sample_rate, seconds=config.clip_seconds)
        for kind, path in names.items():
            sides |= {kind: partial(from_file, path), f"{kind}_reference": partial(chain, path)}
        return sides, {"largest_difference": largest, "chain_difference": max(differences)}


def rows(times: dict[str, float]) -> list[Row]:
    """Rows of the times (ms per clip), with their goals."""

    def row(what: str, side: str, baseline: str, name: str, goal: float) -> Row:
        times_ms = (f"{times[side]:.1f} ms", f"{times[baseline]:.1f} ms ({name})")
        return Row("front-end", what, *times_ms, times[baseline] / times[side], goal)

    floor = (f"{times['log_mel']:.1f} ms", f"{times['fft']:.1f} ms (bare scipy.fft.rfft)")
    chain = "decode {} + resample + LogMel"
    return [
        row("LogMel, 10 s clip", "log_mel", "reference", "torch.stft, dense mel bank", 3.5),
        row("LogMel, 10 s clip", "log_mel", "transforms", "torchaudio.transforms", 3.5),
        row("LogMel, 10 s clip", "log_mel", "tuned", "torch.stft, tuned in place", 3.5),
        Row("front-end", "LogMel over its floor", *floor, times["log_mel"] / times["fft"], 2.2, at_most=True),
        row(chain.format("24-bit WAV"), "wav", "wav_reference", "soundfile + torchaudio", 2.5),
        row(chain.format("FLAC"), "flac", "flac_reference", "soundfile + torchaudio", 2.5),
    ]


def difference(one: FloatArray, other: FloatArray) -> float:
    """Largest absolute difference; infinite if the shapes differ."""
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


def require_equal(what: str, largest: float, tolerance: float) -> None:
    """Raise ValueError if the largest difference of two outputs exceeds the tolerance or is NaN."""
    if not largest <= tolerance:
        raise ValueError(f"{what}: the outputs of both sides differ by {largest:.3g}, more than {tolerance:g}")


def bands_below(config: AudioConfig, hertz: float) -> int:
    """Number of mel bands that end below a frequency."""
    mel = np.log1p(np.array([config.f_min, hertz, config.f_high]) / 700)
    return int((config.n_mels + 1) * (mel[1] - mel[0]) / (mel[2] - mel[0])) - 1


def bare_ffts(frames: FloatArray) -> None:
    """Compute only the real FFTs of the frames, in chunks that fit into the cache."""
    for start in range(0, len(frames), 64):
        scipy.fft.rfft(frames[start : start + 64], axis=1)


def windowed(log_mel: LogMel, waveform: FloatArray) -> FloatArray:
    """The frames (T, n_fft) that LogMel transforms, windowed and zero-padded."""
    config = log_mel.config
    frames = np.zeros((config.frames(len(waveform)), config.n_fft), np.float32)
    window = hann_window(config)
    samples = sliding_window_view(log_mel._samples(waveform), config.win_length)[:: config.hop_length]
    frames[:, : config.win_length] = samples[: len(frames)] * window
    return frames
