"""`recordings`: windows of long recordings and a folder of MP3s to log-mels, and the chain against its parts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.audio.spans import Span
from raymae.benchmark.harness.result import Result, Row
from raymae.benchmark.harness.timing import interleave
from raymae.benchmark.speed.front_end import bare_ffts, windowed
from raymae.config import AudioConfig
from raymae.datasets.synthetic.tones import SAMPLE_RATE, recording

KINDS = {"wav": {"subtype": "PCM_24"}, "flac": {"subtype": "PCM_16"}, "mp3": {}}


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """One long FLAC by windows and short MP3s, on one core (medians of CPU time, alternating sides).

    The baselines are the items of a torch Dataset as it is usually written: soundfile seeks and reads the window, or
    reads the file; torchaudio resamples it; torch.stft and a dense mel bank. A DataLoader runs one per core.

    `--json` keys, milliseconds per clip: `windows_ms`, `windows_reference_ms`, `mp3_ms`, `mp3_reference_ms`; of one
    clip `wav_ms`, `flac_ms` (decode + resample + LogMel) and the parts alone, `wav_decode_ms`, `flac_decode_ms`,
    `resample_ms`, `fft_ms`; `minutes`, `clip_seconds`.
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    minutes: float = 60.0
    """Length of the long recording."""
    files: int = 32
    """MP3 files."""
    repetitions: int = 5
    """Timed calls of each side."""

    def run(self) -> Result:
        """Measure."""
        import torch

        torch.set_num_threads(1)
        config = AudioConfig()
        with tempfile.TemporaryDirectory(prefix="raymae-recordings-") as folder:
            long, short, mp3s = self._write(Path(folder), config)
            sides, clips = self._sides(config, long, short, mp3s)
            times = {name: 1000 * s / clips[name] for name, s in interleave(sides, self.repetitions).items()}
        values: dict[str, Any] = {f"{name}_ms": round(value, 3) for name, value in times.items()}
        values |= {"minutes": self.minutes, "clip_seconds": config.clip_seconds}
        return Result("recordings", rows(times, self.minutes), values)

    def _write(self, folder: Path, config: AudioConfig) -> tuple[str, dict[str, str], list[str]]:
        """The long recording, a short one of each kind, and the MP3s."""
        wave = recording(config.clip_seconds, seed=0, sample_rate=SAMPLE_RATE)
        short = {kind: str(folder / f"short.{kind}") for kind in KINDS}
        for kind, path in short.items():
            soundfile.write(path, wave, SAMPLE_RATE, **KINDS[kind])
        long = str(folder / "long.flac")
        with soundfile.SoundFile(long, "w", SAMPLE_RATE, 1, "PCM_16") as file:
            for _ in range(round(self.minutes * 60 / config.clip_seconds)):
                file.write(wave)
        mp3s = []
        for number in range(self.files):
            mp3s.append(str(folder / f"{number}.mp3"))
            soundfile.write(mp3s[-1], np.roll(wave, 1000 * number), SAMPLE_RATE)
        return long, short, mp3s

    def _sides(
        self, config: AudioConfig, long: str, short: dict[str, str], mp3s: list[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The timed calls, and the clips that each of them reads."""
        from raymae.benchmark.harness.torchaudio_baselines import TorchChain

        chain, reader, log_mel = TorchChain(config, SAMPLE_RATE), ClipReader(config, 600), LogMel(config)
        seconds = config.clip_seconds
        spans: list[Span] = [
            (number * seconds, (number + 1) * seconds) for number in range(round(60 * self.minutes / seconds))
        ]
        waveform = load(short["wav"], config.sample_rate)
        samples, _ = soundfile.read(short["wav"], dtype="float32")
        sides = {
            "windows": partial(read, reader, [long], spans),
            "windows_reference": lambda: [chain.window(long, start or 0.0, seconds) for start, _ in spans],
            "mp3": partial(read, reader, mp3s, [(None, None)]),
            "mp3_reference": lambda: [chain(path) for path in mp3s],
            "resample": partial(soxr.resample, samples, SAMPLE_RATE, config.sample_rate, quality="HQ"),
            "fft": partial(bare_ffts, windowed(log_mel, waveform)),
        }
        for kind in ("wav", "flac"):
            sides[kind] = partial(from_file, log_mel, short[kind])
            sides[f"{kind}_decode"] = partial(soundfile.read, short[kind], dtype="float32")
        many = {"windows": len(spans), "windows_reference": len(spans), "mp3": len(mp3s), "mp3_reference": len(mp3s)}
        return sides, {name: many.get(name, 1) for name in sides}


def read(reader: ClipReader, paths: list[str], spans: list[Span]) -> None:
    """Read the parts of some recordings; AudioError if one can't be read."""
    for path in paths:
        for answer in reader.each(path, spans):
            if isinstance(answer, AudioError):
                raise answer


def from_file(log_mel: LogMel, path: str) -> None:
    """Decode, resample and featurize."""
    log_mel(load(path, log_mel.config.sample_rate))


def rows(times: dict[str, float], minutes: float) -> list[Row]:
    """Rows of the times (ms per clip), with their goals."""

    def against(what: str, side: str, baseline: str) -> Row:
        other = times[f"{side}_reference"]
        return Row("recordings", what, f"{times[side]:.1f} ms", f"{other:.1f} ms ({baseline})", other / times[side], 2)

    def over(kind: str) -> Row:
        floor = times[f"{kind}_decode"] + times["resample"] + times["fft"]
        alone = f"{floor:.1f} ms (decode {times[f'{kind}_decode']:.1f} + soxr {times['resample']:.1f} + FFT)"
        what = f"{kind.upper()} chain over its parts alone"
        return Row("recordings", what, f"{times[kind]:.1f} ms", alone, times[kind] / floor, 1.25, at_most=True)

    return [
        against(f"10 s windows of a FLAC of {minutes:g} minutes", "windows", "soundfile seeks and reads, torchaudio"),
        against("10 s MP3s", "mp3", "soundfile + torchaudio"),
        over("wav"),
        over("flac"),
    ]
