"""Masked autoencoder for log-mels (Huang et al. 2022; Cai & Li 2024, section 2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, ModelConfig
from raymae.models.decoder import DECODERS
from raymae.models.encoder import Encoder, init_weights, select
from raymae.models.masking import Masking, draw_kept, index, unless_all
from raymae.models.patches import Grid, Patches, Positions, unpatchify


class MaeOutput(NamedTuple):
    """Outputs of a forward pass."""

    loss: Tensor
    """Scalar: mean squared error over the removed valid patches of the batch."""
    prediction: Tensor
    """(B x masks, L, p): the predicted values of every patch, the masks of a clip one after the other."""
    mask: Tensor
    """(B x masks, L): 0 is keep, 1 is remove."""
    loss_per_clip: Tensor
    """(B,): the same error of each clip; 0 for a clip without removed valid patches."""


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

    def forward(
        self, log_mel: Tensor, valid_frames: Tensor | None = None, generator: torch.Generator | None = None
    ) -> MaeOutput:
        """Mask, encode, decode and compute the loss.

        Args:
            log_mel: (B, T, F).
            valid_frames: (B,) int64, frames of each clip before padding; the default is all.
            generator: on the CPU, for the mask; the default is torch's global one.
        """
        patches = repeat_clips(self.patchify(log_mel, valid_frames), self.config.masks_per_clip)
        masking = self.random_masking(patches, generator)
        prediction = self.forward_decoder(self.forward_encoder(patches, masking), patches, masking)
        loss, loss_per_clip = self.forward_loss(patches, prediction, masking.mask)
        return MaeOutput(loss, prediction, masking.mask, by_clip(loss_per_clip, self.config.masks_per_clip))

    def patchify(self, log_mel: Tensor, valid_frames: Tensor | None = None) -> Patches:
        """(B, T, F) -> patches of (B, L, p)."""
        return self.encoder.patchify(log_mel, valid_frames)

    def unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        """(B, L, p) -> (B, T, F), whole patches."""
        return unpatchify(patches, grid, self.config.patch_size)

    def random_masking(self, patches: Patches, generator: torch.Generator | None = None) -> Masking:
        """Draw a mask by the model's strategy and ratio."""
        kept = draw_kept(patches.valid, patches.grid, self.config, generator)
        return index(kept, patches.values.device)

    def forward_encoder(self, patches: Patches, masking: Masking) -> Tensor:
        """Encode the class token and the kept patches: (B, 1 + K, D)."""
        return self.encoder(patches, masking)

    def forward_decoder(self, latent: Tensor, patches: Patches, masking: Masking) -> Tensor:
        """(B, 1 + K, D) -> (B, L, p): predict the values of every patch."""
        latent = self.decoder_embed(latent)
        mask_token = self.mask_token.to(latent.dtype).expand(len(latent), -1, -1)
        # Token 1 + i is the i-th kept patch; the mask token comes after the last one.
        places = torch.where(masking.mask == 0, 1 + masking.ids_restore, latent.shape[1])
        tokens = select(torch.cat([latent, mask_token], dim=1), places)
        tokens = tokens + self.decoder_positions(patches.grid, tokens.device)
        tokens = torch.cat([latent[:, :1].to(tokens.dtype), tokens], dim=1)
        valid = unless_all(patches.valid, tokens.device)
        return self.decoder_pred(self.decoder_norm(self.decoder(tokens, patches.grid, valid)))

    def forward_loss(self, patches: Patches, prediction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error over the removed valid patches: of the batch, and of each clip (B,)."""
        target = patches.values
        if self.config.norm_target:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return masked_error(prediction, target, mask * patches.valid.to(mask.device))

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

    def reconstruct(
        self, log_mel: Tensor, valid_frames: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-mels with removed patches predicted (B, T, F), and where they are (B, T, F), bool; whole patches.

        With `norm_target` the model predicts only the shape of a patch; its true mean and deviation are used.
        """
        patches = self.patchify(log_mel, valid_frames)
        masking = self.random_masking(patches, generator)
        values = self.forward_decoder(self.forward_encoder(patches, masking), patches, masking).float()
        if self.config.norm_target:
            variance, mean = torch.var_mean(patches.values, dim=2, keepdim=True)
            values = values * (variance + 1e-6).sqrt() + mean
        removed = (masking.mask > 0)[:, :, None].expand_as(values)
        filled = torch.where(removed, values, patches.values)
        return self.unpatchify(filled, patches.grid), self.unpatchify(removed, patches.grid)


def masked_error(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over the patches (B, L, p) with weight (B, L) 1: of the batch, and of each clip (B,)."""
    error = functional.mse_loss(prediction.float(), target, reduction="none").mean(2)
    error, count = (error * weight).sum(1), weight.sum(1)
    return error.sum() / count.sum().clamp(min=1), error / count.clamp(min=1)


def repeat_clips(patches: Patches, times: int) -> Patches:
    """Repeat every clip `times` times in a row, for as many masks."""
    if times == 1:
        return patches
    values, valid = (tensor.repeat_interleave(times, dim=0) for tensor in (patches.values, patches.valid))
    return Patches(values, patches.grid, valid)


def by_clip(values: Tensor, times: int) -> Tensor:
    """(B x times,) -> (B,): the mean over the masks of each clip."""
    return values.unflatten(0, (-1, times)).mean(1)
