"""The masked autoencoder and the augmentation of what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymae.config.values import require, require_share


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Targets of the model "latent": what a teacher, the average of past encoders, makes of the whole clip."""

    teacher_layers: int | None = None
    """How many of the teacher's uppermost blocks are averaged to the target; the default is the upper half."""
    teacher_view: Literal["same", "clean", "other"] = "other"
    """What the teacher hears: the student's clip; the clip without colour, Freq-MixStyle and SpecAugment; or the clip
    with other draws of these."""
    decay: float = 0.99
    """Decay of the teacher's average at the beginning."""
    final_decay: float = 0.999
    """Decay from `ramp` of the run on; linear in between."""
    ramp: float = 0.5
    """Share of the run."""
    clip_weight: float = 1.0
    """Weight of the class token's error: it predicts the mean of the clip's targets (EAT's utterance loss)."""

    def __post_init__(self) -> None:
        for name in ("decay", "final_decay"):
            require_share(f"model.latent.{name}", getattr(self, name))
        require(0 < self.ramp <= 1, f"model.latent.ramp = {self.ramp} must lie in (0, 1]")
        require(self.clip_weight >= 0, f"model.latent.clip_weight = {self.clip_weight} must not be negative")
        layers = self.teacher_layers
        require(layers is None or layers >= 1, f"model.latent.teacher_layers = {layers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder, decoder and masking. The defaults are Audio-MAE's ViT-B (Huang et al. 2022) with the paper's masks."""

    name: Literal["mae", "latent"] = "mae"
    """What pre-training predicts: mae, the removed patches of the spectrogram (paper); latent, a teacher's features."""
    patch_size: tuple[int, int] = (16, 16)
    """Frames and mel bands of a patch."""
    embed_dim: int = 768
    """Width of the encoder."""
    depth: int = 12
    """Blocks of the encoder."""
    num_heads: int = 12
    """Attention heads of the encoder."""
    mlp_ratio: float = 4.0
    """Width of the MLPs over the width of their block."""
    decoder: Literal["local", "global", "light"] = "local"
    """local: windows of 4 x 4 patches, every second block shifted along time (paper); global: plain; light: narrow."""
    decoder_embed_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 16
    """Blocks of the decoder."""
    decoder_num_heads: int = 16
    """Attention heads of the decoder."""
    mask_strategy: Literal["unstructured", "time", "frequency", "time_frequency"] = "unstructured"
    """Which patches are removed together: single patches, whole time columns, frequency rows, or both."""
    mask_ratio: float = 0.8
    """Share of the patches that is REMOVED in pre-training (all strategies but time_frequency)."""
    time_mask_ratio: float = 0.7
    """Share of time columns removed by time_frequency."""
    freq_mask_ratio: float = 0.3
    """Share of frequency rows removed by time_frequency."""
    masks_per_clip: int = 1
    """Masks of each clip in a step, each a row of the batch; with "latent" they share one pass of the teacher."""
    norm_target: bool = False
    """Normalise each target patch (Audio-MAE); off: the spectrogram itself is the target (the paper's MSE)."""
    latent: LatentConfig = LatentConfig()
    """Targets of the model "latent"."""

    def __post_init__(self) -> None:
        for name in ("mask_ratio", "time_mask_ratio", "freq_mask_ratio"):
            require_share(f"model.{name}", getattr(self, name))
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}embed_dim"), getattr(self, f"{prefix}num_heads")
            require(width % heads == 0, f"model.{prefix}embed_dim = {width} must be a multiple of its {heads} heads")
            require(
                width % 4 == 0, f"model.{prefix}embed_dim = {width} must be a multiple of 4 (2-D sin-cos positions)"
            )
        require(
            self.patch_size[0] >= 2 and self.patch_size[1] >= 1,
            f"model.patch_size = {self.patch_size} must span at least 2 frames and 1 mel band",
        )
        require(self.depth >= 1 and self.decoder_depth >= 1, "model.depth and decoder_depth must be at least 1")
        require(self.masks_per_clip >= 1, f"model.masks_per_clip = {self.masks_per_clip} must be at least 1")
        require(
            self.name == "latent" or self.latent == LatentConfig(),
            f"model.latent is of no use to model.name = {self.name}; set --model.name latent",
        )
        require(
            self.name != "latent" or not self.norm_target,
            "model.norm_target is of no use to model.name = latent, whose targets are always normalised",
        )
        layers = self.latent.teacher_layers
        require(
            layers is None or layers <= self.depth,
            f"model.latent.teacher_layers = {layers} must not exceed model.depth = {self.depth}",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of log-mel batches in training, each off by default (p = 0 is the identity)."""

    crop_seconds: float | None = None
    """Length of a random crop, seconds; the default is the whole clip."""
    roll_p: float = 0.0
    """Probability of rolling a clip in time by a random number of frames."""
    gain_db: float = 0.0
    """Largest random gain, dB in either direction."""
    colour_p: float = 0.0
    """Probability of a random smooth frequency response (another recording device)."""
    colour_nats: float = 3.0
    """Standard deviation of the response at its knots, nats of power."""
    colour_knots: int = 8
    """Knots of the response from the lowest to the highest band."""
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
        for name in ("roll_p", "colour_p", "mixup_p", "mixstyle_p"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} = {getattr(self, name)} is a probability: 0 to 1")
        for name in ("gain_db", "colour_nats", "freq_mask_param", "time_mask_param"):
            require(getattr(self, name) >= 0, f"augment.{name} = {getattr(self, name)} must not be negative")
        for name in ("mixup_alpha", "mixstyle_alpha"):
            require(getattr(self, name) > 0, f"augment.{name} = {getattr(self, name)} must be positive")
        require(self.colour_knots >= 2, f"augment.colour_knots = {self.colour_knots} must be at least 2")
