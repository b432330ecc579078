"""Masked prediction of latent targets (data2vec 2.0, Baevski et al. 2022; EAT, Chen et al. 2024)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, ModelConfig
from raymae.models.encoder import select
from raymae.models.mae import MaeOutput, MaskedAutoencoder, by_clip, masked_error, repeat_clips
from raymae.models.masking import index
from raymae.models.patches import Patches, patchify


class LatentAutoencoder(MaskedAutoencoder):
    """The masked autoencoder whose decoder predicts what a teacher makes of the whole clip, not its pixels.

    The teacher is an exponential average of the encoder and sees every valid patch. A patch's target is the mean over
    the teacher's upper blocks of its token, each channel normalised over the patches of the clip (data2vec 2.0), then
    normalised over the channels. All masks of a clip share one pass of the teacher. The class token predicts the mean
    over the clip of the not yet normalised tokens.

    The teacher is part of the state_dict, so that a commit holds it, and of no use once pre-training is over.
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig) -> None:
        super().__init__(audio, model)
        self.clip_pred = nn.Linear(model.embed_dim, model.embed_dim)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    def target_size(self) -> int:
        """Values that the decoder predicts of each patch: the encoder's width."""
        return self.config.embed_dim

    def forward(
        self,
        log_mel: Tensor,
        valid_frames: Tensor | None = None,
        generator: torch.Generator | None = None,
        teacher_view: Tensor | None = None,
    ) -> MaeOutput:
        """Mask, encode, decode and compare; `prediction` is (B x masks, L, D).

        Args:
            log_mel: (B, T, F), what the student sees.
            valid_frames: (B,) int64, frames of each clip before padding; the default is all.
            generator: of the CPU, for the masks; the default is torch's global one.
            teacher_view: (B, T, F), the same clips as the teacher sees them; the default is `log_mel`.
        """
        times = self.config.masks_per_clip
        patches = self.patchify(log_mel, valid_frames)
        target, clip_target = self.targets(log_mel if teacher_view is None else teacher_view, patches)
        patches = repeat_clips(patches, times)
        masking = self.random_masking(patches, generator)
        latent = self.forward_encoder(patches, masking)
        prediction = self.forward_decoder(latent, patches, masking)
        weight = masking.mask * patches.valid.to(masking.mask.device)
        loss, loss_per_clip = masked_error(prediction, target.repeat_interleave(times, dim=0), weight)
        clip_error = (self.clip_pred(latent[:, 0]).float() - clip_target.repeat_interleave(times, dim=0)).square()
        loss = loss + self.config.latent.clip_weight * clip_error.mean()
        return MaeOutput(loss, prediction, masking.mask, by_clip(loss_per_clip, times))

    @torch.no_grad()
    def targets(self, log_mel: Tensor, patches: Patches) -> tuple[Tensor, Tensor]:
        """The teacher's targets of every patch (B, L, D) and of every clip (B, D).

        `log_mel` (B, T, F) is what the teacher sees; which patches are valid is taken from the student's.
        """
        seen = Patches(patchify(log_mel, self.config.patch_size, self.encoder.silence), patches.grid, patches.valid)
        masking = index(patches.valid, seen.values.device)
        count = self.config.latent.teacher_layers or -(-self.config.depth // 2)
        outputs = self.teacher.layer_outputs(seen, masking)[-count:]
        places = torch.where(masking.mask == 0, 1 + masking.ids_restore, 0)
        valid = (1 - masking.mask)[:, :, None]
        tokens = [select(output.float(), places) for output in outputs]
        clip = torch.stack([_clip_mean(functional.layer_norm(one, one.shape[2:]), valid) for one in tokens]).mean(0)
        patch = torch.stack([_normalise(one, valid) for one in tokens]).mean(0)
        return functional.layer_norm(patch, patch.shape[2:]), functional.layer_norm(clip, clip.shape[1:])

    @torch.no_grad()
    def after_update(self, share: float) -> None:
        """Move the teacher towards the encoder; `share` of the run is done."""
        config = self.config.latent
        decay = config.decay + (config.final_decay - config.decay) * min(1.0, share / config.ramp)
        teacher: list[Tensor] = list(self.teacher.parameters())
        torch._foreach_lerp_(teacher, [one.detach() for one in self.encoder.parameters()], 1 - decay)


def _clip_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """(B, L, D) -> (B, D): the mean over the valid patches (B, L, 1)."""
    return (tokens * valid).sum(1) / valid.sum(1).clamp(min=1)


def _normalise(tokens: Tensor, valid: Tensor) -> Tensor:
    """(B, L, D) with each channel normalised over the valid patches (B, L, 1) of its clip."""
    centred = tokens - _clip_mean(tokens, valid)[:, None]
    return centred / (_clip_mean(centred.square(), valid)[:, None] + 1e-5).sqrt()
