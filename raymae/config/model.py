"""Settings of the masked autoencoder: encoder, decoder, masks and targets; its sizes by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raymae.config.values import require, require_share

ModelSize = Literal["tiny", "small", "base", "large", "huge"]

DecoderName = Literal["local", "global", "light", "conv"]

MaskStrategy = Literal["unstructured", "time", "frequency", "time_frequency", "inverse_block"]

LIGHT_BLOCKS = 4
"""Most blocks of the decoder "light"."""

MAX_DEPTH = 1000


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Targets of name = latent: the features of a teacher, a moving average of the encoder, for the whole clip."""

    teacher_layers: int | None = None
    """Number of the teacher's last blocks whose outputs are averaged to the target; None: the upper half."""
    targets: Literal["block", "mlp"] = "block"
    """What is taken of each of these blocks. block: its output; mlp: the output of its MLP, before that is added to the
    residual (EAT, end_of_block_targets: false)."""
    teacher_view: Literal["same", "clean", "other"] = "other"
    """Input of the teacher. same: the student's clip; clean: the clip without coloration (responses, random EQ,
    Freq-MixStyle, SpecAugment); other: the clip with other draws of the coloration."""
    decay: float = 0.99
    """Decay of the teacher's moving average at the start of the run."""
    final_decay: float = 0.999
    """Decay of the teacher's moving average once `ramp` of the run is over; linear in between."""
    ramp: float = 0.5
    """Share of the run over which the decay grows."""
    clip_weight: float = 1.0
    """Weight of the class token's loss (EAT's utterance loss), a mean over clips, beside that of the patches, a mean
    over removed patches."""
    clip_target: Literal["tokens", "patches"] = "tokens"
    """What the class token predicts. tokens: by a linear layer, the mean of the teacher's tokens, each normalised
    over its channels alone; patches: by itself, the mean of the clip's targets as the patches have them, which differs
    from 0 by their last norm alone (EAT's code)."""

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
    """What pre-training predicts. mae: the removed patches of the spectrogram (paper); latent: a teacher's features."""
    patch_size: tuple[int, int] = (16, 16)
    """Size of a patch: frames, mel bands."""
    embed_dim: int = 768
    """Width of the encoder."""
    depth: int = 12
    """Number of blocks of the encoder."""
    num_heads: int = 12
    """Attention heads of the encoder."""
    mlp_ratio: float = 4.0
    """Width of the MLPs relative to the width of their block."""
    decoder: DecoderName = "local"
    """local: attention in windows of 4 x 4 patches, every second block shifted along time (paper); global: plain
    attention; light: plain attention, few blocks; conv: convolutions over 3 x 3 patches (data2vec 2.0, EAT). On the
    command line, a decoder other than the recipe's brings its own sizes: local has 16 blocks of width 512, global 8 of
    512, light 2 of 256, conv 6 layers of 768 in 16 groups."""
    decoder_embed_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 16
    """Number of blocks of the decoder."""
    decoder_num_heads: int = 16
    """Attention heads of the decoder; groups of the convolutions of conv."""
    mask_strategy: MaskStrategy = "unstructured"
    """What is removed together. unstructured: single patches; time: whole time columns; frequency: whole frequency
    rows; time_frequency: both; inverse_block: all but some blocks of patches (data2vec 2.0, EAT)."""
    mask_block: int = 5
    """Patches along each side of the blocks that inverse_block keeps."""
    mask_block_surplus: float = 0.07
    """Share of the patches by which the blocks of inverse_block are larger together than what is kept, since they
    overlap (mask_prob_adjust of EAT's code). What they have too many is removed patch by patch, what is still missing
    is kept patch by patch, at random."""
    mask_ratio: float = 0.8
    """Share of the patches REMOVED in pre-training (all strategies but time_frequency)."""
    time_mask_ratio: float = 0.7
    """Share of time columns removed by time_frequency."""
    freq_mask_ratio: float = 0.3
    """Share of frequency rows removed by time_frequency."""
    masks_per_clip: int = 1
    """Masks of each clip in a step, each a row of the batch; with name = latent they share one pass of the teacher."""
    norm_target: bool = False
    """Normalise each target patch (Audio-MAE); off: the spectrogram itself is the target (the paper's MSE)."""
    latent: LatentConfig = LatentConfig()
    """Targets of name = latent."""

    def __post_init__(self) -> None:
        for name in ("mask_ratio", "time_mask_ratio", "freq_mask_ratio"):
            require_share(f"model.{name}", getattr(self, name))
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}embed_dim"), getattr(self, f"{prefix}num_heads")
            parts = "groups" if prefix and self.decoder == "conv" else "heads"
            require(width % heads == 0, f"model.{prefix}embed_dim = {width} must be a multiple of its {heads} {parts}")
            require(
                width % 4 == 0, f"model.{prefix}embed_dim = {width} must be a multiple of 4 (2-D sin-cos positions)"
            )
        require(
            self.patch_size[0] >= 2 and self.patch_size[1] >= 1,
            f"model.patch_size = {self.patch_size} must span at least 2 frames and 1 mel band",
        )
        require(
            1 <= self.depth <= MAX_DEPTH and 1 <= self.decoder_depth <= MAX_DEPTH,
            f"model.depth = {self.depth} and decoder_depth = {self.decoder_depth} must lie between 1 and {MAX_DEPTH}",
        )
        require(
            self.decoder != "light" or self.decoder_depth <= LIGHT_BLOCKS,
            f"model.decoder = light has at most {LIGHT_BLOCKS} blocks, not model.decoder_depth = {self.decoder_depth}: "
            "use 2 blocks of decoder_embed_dim 256 (DECODERS), or global",
        )
        self._check_blocks()
        require(self.masks_per_clip >= 1, f"model.masks_per_clip = {self.masks_per_clip} must be at least 1")
        require(
            self.name == "latent" or self.latent == LatentConfig(),
            f"model.latent has no effect with model.name = {self.name}: set --model.name latent",
        )
        require(
            self.name != "latent" or not self.norm_target,
            "model.norm_target has no effect with model.name = latent, whose targets are always normalised",
        )
        require(
            self.name != "latent" or self.mask_ratio > 0 or self.mask_strategy == "time_frequency",
            "model.mask_ratio = 0 removes nothing, and model.name = latent predicts what is removed: EAT removes 0.8",
        )
        layers = self.latent.teacher_layers
        require(
            layers is None or layers <= self.depth,
            f"model.latent.teacher_layers = {layers} must not exceed model.depth = {self.depth}",
        )

    def _check_blocks(self) -> None:
        """Check the settings of the mask strategy inverse_block."""
        require_share("model.mask_block_surplus", self.mask_block_surplus)
        require(self.mask_block >= 1, f"model.mask_block = {self.mask_block} must be at least 1")
        for name in ("mask_block", "mask_block_surplus"):
            value = getattr(self, name)
            require(
                self.mask_strategy == "inverse_block" or value == getattr(ModelConfig, name),
                f"model.{name} = {value} has no effect with model.mask_strategy = {self.mask_strategy}: set "
                "model.mask_strategy = inverse_block",
            )
        require(
            self.mask_strategy != "inverse_block" or self.mask_ratio > 0,
            "model.mask_ratio = 0 removes nothing, so that model.mask_strategy = inverse_block has no blocks to keep: "
            "EAT removes 0.8",
        )


MODEL_SIZES: dict[ModelSize, ModelConfig] = {
    # ViT-Ti/16 of DeiT (Touvron et al. 2021, table 1), timm's vit_tiny_patch16.
    "tiny": ModelConfig(embed_dim=192, depth=12, num_heads=3),
    # ViT-S, B and L as in Audio-MAE's models_mae.py and in timm. Audio-MAE gives all of them the same decoder: width
    # 512, 16 heads and, if it is local, 16 blocks.
    "small": ModelConfig(embed_dim=384, depth=12, num_heads=6),
    "base": ModelConfig(),
    "large": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
    # ViT-H of MAE (He et al. 2022), whose patches are 14 x 14; here those of the others.
    "huge": ModelConfig(embed_dim=1280, depth=32, num_heads=16),
}
"""Complete models by the size of their encoder; a recipe uses one as it is, or with some of its fields replaced."""

DECODERS: dict[DecoderName, ModelConfig] = {
    "local": ModelConfig(),
    # The plain decoder with which Audio-MAE compares its local one (dec512d8b).
    "global": ModelConfig(decoder="global", decoder_depth=8),
    # With it, ViT-B needs less than 40 % of the FLOPs per step that it needs with the local blocks.
    "light": ModelConfig(decoder="light", decoder_embed_dim=256, decoder_depth=2, decoder_num_heads=8),
    # EAT's for ViT-B (its pretraining_AS2M.yaml).
    "conv": ModelConfig(decoder="conv", decoder_embed_dim=768, decoder_depth=6, decoder_num_heads=16),
}
"""Base models by the name of their decoder."""


def with_size(model: ModelConfig, size: ModelSize) -> ModelConfig:
    """The same model with the encoder of `MODEL_SIZES[size]`."""
    other = MODEL_SIZES[size]
    return replace(model, embed_dim=other.embed_dim, depth=other.depth, num_heads=other.num_heads)


def with_decoder(model: ModelConfig, decoder: DecoderName) -> ModelConfig:
    """The same model with the decoder of `DECODERS[decoder]`."""
    other = DECODERS[decoder]
    return replace(
        model,
        decoder=decoder,
        decoder_embed_dim=other.decoder_embed_dim,
        decoder_depth=other.decoder_depth,
        decoder_num_heads=other.decoder_num_heads,
    )
