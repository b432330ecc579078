"""Masked autoencoder for log-mels (Huang et al. 2022; Cai & Li 2024, section 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, ModelConfig
from raymae.models.decoder import DECODERS
from raymae.models.encoder import Encoder, init_weights, select
from raymae.models.masking import (
    Drawn,
    Kept,
    Masking,
    RandomBits,
    arrange,
    draw_kept,
    kept_tokens,
    masking_of,
)
from raymae.models.patches import Grid, Patches, Positions, all_frames, unpatchify


class MaeOutput(NamedTuple):
    """Outputs of a forward pass: sums, so that the mean over a step doesn't depend on how its clips are divided."""

    error: Tensor
    """(B,): the squared errors, each a mean over a patch's values, summed over the removed valid patches of a clip."""
    patches: Tensor
    """(B,): how many these patches are, over all masks of the clip."""
    prediction: Tensor
    """(B x masks, L, p): the predicted values of every patch, the masks of a clip one after the other."""
    mask: Tensor
    """(B x masks, L): 0 is keep, 1 is remove."""
    clip_error: Tensor | None = None
    """(B,): the error of a clip as a whole, summed over its masks, of models that predict it."""
    target_variance: Tensor | None = None
    """(B,): the variance of a clip's targets over its patches, of models whose targets could collapse."""

    @property
    def loss(self) -> Tensor:
        """Scalar: mean squared error over the removed valid patches of the batch."""
        return self.error.sum() / self.patches.sum().clamp(min=1)


class MaskedAutoencoder(nn.Module):
    """A ViT encoder of the kept patches and a decoder that reconstructs the removed ones.

    Patches in padding and constant patches (`patches.valid_patches`) are not encoded, not attended to and not part of
    the loss. Clips may have any length; those of a batch are padded to the same length.
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = model
        self.encoder = Encoder(audio, model)
        self.decoder_embed = nn.Linear(model.embed_dim, model.decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, model.decoder_embed_dim))
        self.decoder_positions = Positions(model.decoder_embed_dim)
        self.decoder = DECODERS[model.decoder](model)
        self.decoder_norm = LayerNorm(model.decoder_embed_dim)
        self.decoder_pred = nn.Linear(model.decoder_embed_dim, self.target_size())
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(init_weights)

    def target_size(self) -> int:
        """Number of values that the decoder predicts for each patch: its pixels."""
        return self.config.patch_size[0] * self.config.patch_size[1]

    def forward(self, log_mel: Tensor, masking: Masking) -> MaeOutput:
        """Encode and decode log-mels (B, T, F) under a masking of B x masks clips, and compute the errors."""
        times = self.config.masks_per_clip
        patches = repeat_clips(self.patchify(log_mel), times)
        prediction = self.forward_decoder(self.forward_encoder(patches, masking), patches, masking)
        error, number = self.forward_loss(patches, prediction, masking)
        return MaeOutput(by_clip(error, times), by_clip(number, times), prediction, masking.mask)

    def patchify(self, log_mel: Tensor) -> Patches:
        """(B, T, F) -> patches of (B, L, p)."""
        return self.encoder.patchify(log_mel)

    def unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        """(B, L, p) -> (B, T, F), whole patches."""
        return unpatchify(patches, grid, self.config.patch_size)

    def draw(self, valid: NDArray[np.bool_], grid: Grid, draws: RandomBits, always: bool = False) -> Drawn:
        """Draw masks by the model's strategy and ratio, `masks_per_clip` for each clip: the arrays of `masking_of`.

        Args:
            valid: (B, L), the valid patches.
            always: see `raymae.models.masking.arrange`.
        """
        times = self.config.masks_per_clip
        valid = np.repeat(valid, times, axis=0)
        kept = draw_kept(valid, grid, self.config, draws.repeated(times))
        return arrange(kept, valid, kept_tokens(grid, self.config), always)

    def random_masking(self, log_mel: Tensor, valid_frames: Tensor | None, draws: RandomBits) -> Masking:
        """Draw masks for log-mels (B, T, F), valid frames (B,) or None for all; on their device.

        In training everything but the arithmetic is decided ahead (`draw`); this reads the batch back.
        """
        patches = self.patchify(log_mel)
        valid = self.encoder.valid(patches, all_frames(log_mel) if valid_frames is None else valid_frames)
        drawn = self.draw(valid.cpu().numpy(), patches.grid, draws)
        return masking_of({name: torch.from_numpy(value).to(log_mel.device) for name, value in drawn.items()})

    def forward_encoder(self, patches: Patches, masking: Masking) -> Tensor:
        """Encode the class token and the kept patches: (B, 1 + K, D)."""
        return self.encoder(patches, masking.kept)

    def forward_decoder(self, latent: Tensor, patches: Patches, masking: Masking) -> Tensor:
        """(B, 1 + K, D) -> (B, L, p): predict the values of every patch."""
        latent = self.decoder_embed(latent)
        mask_token = self.mask_token.to(latent.dtype).expand(len(latent), -1, -1)
        # Token 1 + i is the i-th kept patch; the mask token comes after the last one.
        places = torch.where(masking.mask == 0, 1 + masking.ids_restore, latent.shape[1])
        tokens = select(torch.cat([latent, mask_token], dim=1), places)
        if self.decoder.takes_positions:
            tokens = tokens + self.decoder_positions(patches.grid, tokens.device)
        tokens = torch.cat([latent[:, :1].to(tokens.dtype), tokens], dim=1)
        return self.decoder_pred(self.decoder_norm(self.decoder(tokens, patches.grid, masking.valid)))

    def forward_loss(self, patches: Patches, prediction: Tensor, masking: Masking) -> tuple[Tensor, Tensor]:
        """Squared errors summed over the removed valid patches of each clip (B,), and their number (B,)."""
        target = patches.values
        if self.config.norm_target:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return summed_error(prediction, target, removed_valid(masking))

    def after_update(self, share: float) -> None:
        """Called after each optimiser step with the finished share of the run, 0 to 1; does nothing here."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Every trained parameter once; one-dimensional ones and the tokens without weight decay."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            (plain if parameter.ndim == 1 or name.endswith("_token") else decayed).append(parameter)
        return [
            {"name": "decayed", "params": decayed, "weight_decay": weight_decay, "lr_scale": 1.0},
            {"name": "plain", "params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
        ]

    def reconstruct(self, log_mel: Tensor, valid_frames: Tensor | None, draws: RandomBits) -> tuple[Tensor, Tensor]:
        """Log-mels with removed patches predicted (B, T, F), and where they are (B, T, F), bool; whole patches.

        With `norm_target` the model predicts only the shape of a patch; its true mean and deviation are used.
        """
        patches = self.patchify(log_mel)
        masking = first_masks(self.random_masking(log_mel, valid_frames, draws), self.config.masks_per_clip)
        values = self.forward_decoder(self.forward_encoder(patches, masking), patches, masking).float()
        if self.config.norm_target:
            variance, mean = torch.var_mean(patches.values, dim=2, keepdim=True)
            values = values * (variance + 1e-6).sqrt() + mean
        removed = (masking.mask > 0)[:, :, None].expand_as(values)
        filled = torch.where(removed, values, patches.values)
        return self.unpatchify(filled, patches.grid), self.unpatchify(removed, patches.grid)


def removed_valid(masking: Masking) -> Tensor:
    """(B, L): 1 for the patches of the loss."""
    return masking.mask if masking.valid is None else masking.mask * masking.valid


def summed_error(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of patches (B, L, p), means over their values, summed by `weight` (B, L), 0 or 1; and its sum:
    (B,) each."""
    error = functional.mse_loss(prediction.float(), target, reduction="none").mean(2)
    return (error * weight).sum(1), weight.sum(1)


def repeat_clips(patches: Patches, times: int) -> Patches:
    """Repeat every clip `times` times in a row, for as many masks."""
    return patches if times == 1 else patches._replace(values=patches.values.repeat_interleave(times, dim=0))


def by_clip(values: Tensor, times: int) -> Tensor:
    """(B x times,) -> (B,): the sum over the masks of each clip."""
    return values.unflatten(0, (-1, times)).sum(1)


def first_masks(masking: Masking, times: int) -> Masking:
    """The first of the masks of each clip."""

    def first(values: Tensor | None) -> Any:
        return None if values is None else values[::times]

    return Masking(
        Kept(first(masking.kept.ids), first(masking.kept.attend)),
        *(first(one) for one in (masking.mask, masking.ids_restore, masking.valid)),
    )
