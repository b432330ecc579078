"""Feature stores of noise, without audio files, and the pre-training stages that read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from raymae.audio.spans import Clip, Span
from raymae.config import AudioConfig, Config
from raymae.config.stages import Kind
from raymae.datasets.synthetic.tones import noise_clips
from raymae.features.write import write_store
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

VALUES = 1_000_000
"""Length of the noise that clips are pieces of, if none is longer."""
CLASSES = 10
"""Classes of labelled clips."""


class NoiseReader:
    """Reader of float16 noise in [0, 1): a piece of one long noise, whose path is the offset of its first value."""

    timeout = 30.0

    def __init__(self, audio: AudioConfig) -> None:
        self.audio = audio
        count = max(VALUES, 2 * audio.n_frames * audio.n_mels)
        self.noise = np.random.default_rng(0).integers(0, 0x3C00, count, dtype=np.uint16).view(np.float16)

    def each(self, path: str, spans: Sequence[Span]) -> Iterator[Clip]:
        """Features (T, F), frames and seconds."""
        shape = (self.audio.n_frames, self.audio.n_mels)
        start = int(path) % (len(self.noise) - shape[0] * shape[1])
        features = self.noise[start : start + shape[0] * shape[1]].reshape(shape)
        yield from [(features, shape[0], self.audio.clip_seconds)] * len(spans)


def noise_audio(n_frames: int, n_mels: int) -> AudioConfig:
    """A front end whose clips have this shape."""
    front_end = AudioConfig(n_mels=n_mels)
    return AudioConfig(n_mels=n_mels, clip_seconds=n_frames * front_end.hop_length / front_end.sample_rate)


def noise_stage(folder: Folder, config: Config, clips: int, kind: Kind = "pretrain") -> StageSpec:
    """Write a store of noise, labelled unless it is for pre-training; returns the stage that reads it."""
    audio, table = config.audio, noise_clips(clips)
    if kind != "pretrain":
        columns = {"split": ["train"] * clips, "scene_label": [f"class {number % CLASSES}" for number in range(clips)]}
        table = pa.table({**{name: table[name] for name in table.column_names}, **columns})
    store = write_store(folder, table, audio, NoiseReader(audio), config.data.shard_mb)
    return StageSpec(name="noise", kind=kind, config=config, artifact=folder / "run", store=store)
