"""What is measured at which sizes: those of a GPU of the data centre, and tiny ones for a trial on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from raymae.benchmark.harness.noise_store import noise_audio
from raymae.config import AudioConfig, Config, FinetuneConfig, ModelConfig, PretrainConfig, with_decoder
from raymae.config.stages import Kind
from raymae.pipeline.dry_run.cost import VIT_B, finetune_flops, useful_flops

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of models, clips and runs."""

    models: Mapping[str, ModelConfig]
    """By the name of the decoder."""
    n_frames: int
    n_mels: int
    product: int
    """Side of the matrices whose product is the peak."""
    clips: int
    """Clips of a step."""
    other_clips: tuple[int, ...]
    turns: int
    """Timed turns, of which the median counts."""
    steps: int
    """Steps of a turn."""
    loop_steps: tuple[int, int, int]
    """Steps of the loop before the timed ones, timed, and with the host's own time apart."""
    store_clips: int
    """Clips of the store that the loop reads."""

    @property
    def audio(self) -> AudioConfig:
        """The front end of the clips."""
        return noise_audio(self.n_frames, self.n_mels)

    def config(self, kind: Kind, decoder: str, clips: int, device: Device, compiled: bool) -> Config:
        """The settings of a stage whose step is one pass of `clips`; bf16 on GPUs, fp32 on CPUs."""
        train: dict[str, Any] = {
            "global_batch_size": clips,
            "micro_batch_size": clips,
            "precision": "bf16" if device == "cuda" else "fp32",
            "compile": compiled,
            "lr": 1e-4,
            "epochs": 1.0,
            "warmup_epochs": 0,
            "commit_minutes": 1e6,
        }
        pretrain = PretrainConfig(**train, probe_clips=0) if kind == "pretrain" else PretrainConfig()
        finetune = FinetuneConfig(**train) if kind == "finetune" else FinetuneConfig()
        return Config(audio=self.audio, model=self.models[decoder], pretrain=pretrain, finetune=finetune)

    def flops(self, kind: Kind, config: Config) -> float:
        """Useful FLOPs of a stage per clip."""
        shape = self.n_frames, self.n_mels
        if kind == "pretrain":
            return useful_flops(config.model, *shape)
        return finetune_flops(config.model, config.finetune, *shape)


FULL = Sizes(
    models={decoder: with_decoder(VIT_B, decoder) for decoder in ("local", "global", "light")},
    n_frames=1024,
    n_mels=128,
    product=8192,
    clips=128,
    other_clips=(256, 64, 32),
    turns=5,
    steps=5,
    loop_steps=(32, 64, 20),
    store_clips=1024,
)
_TINY = ModelConfig(
    embed_dim=32, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2, mask_ratio=0.8
)
TINY = Sizes(
    models={decoder: replace(_TINY, decoder=decoder) for decoder in ("local", "global", "light")},
    n_frames=128,
    n_mels=64,
    product=64,
    clips=8,
    other_clips=(16, 4, 2),
    turns=1,
    steps=2,
    loop_steps=(2, 4, 2),
    store_clips=32,
)
