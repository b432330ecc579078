"""Masked prediction of latent targets (data2vec 2.0, Baevski et al. 2022; EAT, Chen et al. 2024)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, ModelConfig
from raymae.models.mae import (
    MaeOutput,
    MaskedAutoencoder,
    by_clip,
    first_masks,
    removed_valid,
    repeat_clips,
    summed_error,
)
from raymae.models.masking import Masking, RandomBits, every
from raymae.models.patches import Patches, all_frames


class LatentAutoencoder(MaskedAutoencoder):
    """Masked autoencoder whose decoder predicts a teacher's features of the whole clip instead of pixels.

    The teacher is an exponential moving average of the encoder and processes every valid patch. A patch's target is its
    token averaged over the teacher's upper blocks, in each of which every channel is normalised over the patches of the
    clip (data2vec 2.0); the average is then normalised over the channels. All masks of a clip share one pass of the
    teacher. The class token predicts the clip's mean of the blocks' tokens, each normalised over its channels only.

    The teacher is part of the state_dict, so that checkpoints include it; after pre-training it isn't used any more.
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig) -> None:
        super().__init__(audio, model)
        self.clip_pred = nn.Linear(model.embed_dim, model.embed_dim)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    def target_size(self) -> int:
        """Number of values that the decoder predicts for each patch: the encoder's width."""
        return self.config.embed_dim

    def forward(self, log_mel: Tensor, masking: Masking, teacher_view: Tensor | None = None) -> MaeOutput:
        """Encode and decode under a masking of B x masks clips, and compute the errors; `prediction` is
        (B x masks, L, D).

        Args:
            log_mel: (B, T, F), the student's input.
            masking: of B x masks clips.
            teacher_view: (B, T, F), the teacher's input, the same clips; the default is `log_mel`.
        """
        times = self.config.masks_per_clip
        patches = self.patchify(log_mel)
        valid = None if masking.valid is None else masking.valid[::times]
        target, clip_target = self.targets(patches if teacher_view is None else self.patchify(teacher_view), valid)
        patches = repeat_clips(patches, times)
        latent = self.forward_encoder(patches, masking)
        prediction = self.forward_decoder(latent, patches, masking)
        weight = removed_valid(masking)
        error, count = summed_error(prediction, target.repeat_interleave(times, dim=0), weight)
        clip_error = self.clip_pred(latent[:, 0]).float() - clip_target.repeat_interleave(times, dim=0)
        clip_error = by_clip(clip_error.square().mean(1), times)
        if valid is not None:
            clip_error = clip_error * valid.any(1)
        return MaeOutput(by_clip(error, times), by_clip(count, times), prediction, masking.mask, clip_error)

    @torch.no_grad()
    def targets(self, patches: Patches, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The teacher's targets of every patch (B, L, D) and of every clip (B, D), by the `valid` patches (B, L); None:
        all are."""
        batch, number = patches.values.shape[:2]
        count = self.config.latent.teacher_layers or -(-self.config.depth // 2)
        everything = every(valid, batch, number, patches.values.device)
        outputs = self.teacher.layer_outputs(patches, everything)[-count:]
        tokens = [output[:, 1:].float() for output in outputs]
        used = torch.ones(1, 1, 1, device=patches.values.device) if valid is None else valid[:, :, None].float()
        used = used.expand(batch, number, 1)
        clip = torch.stack([_clip_mean(functional.layer_norm(one, one.shape[2:]), used) for one in tokens]).mean(0)
        patch = torch.stack([_normalise(one, used) for one in tokens]).mean(0)
        return functional.layer_norm(patch, patch.shape[2:]), functional.layer_norm(clip, clip.shape[1:])

    @torch.inference_mode()
    def component_maps(
        self, log_mel: Tensor, valid_frames: Tensor | None, draws: RandomBits
    ) -> tuple[Tensor, Tensor, Tensor]:
        """First principal component of one clip's targets, for a figure; constant within a patch, whole patches.

        Returns:
            The component of the targets (1, T, F), that of the predictions in the same direction (1, T, F), and where
            patches were removed (1, T, F), bool.
        """
        patches = self.patchify(log_mel)
        valid = self.encoder.valid(patches, all_frames(log_mel) if valid_frames is None else valid_frames)
        target, _ = self.targets(patches, valid)
        masking = first_masks(self.random_masking(log_mel, valid_frames, draws), self.config.masks_per_clip)
        prediction = self.forward_decoder(self.forward_encoder(patches, masking), patches, masking).float()
        mean = target[0, valid[0]].mean(0)
        direction = torch.linalg.svd(target[0, valid[0]] - mean, full_matrices=False).Vh[0]
        size = patches.values.shape[2]
        columns = ((target - mean) @ direction, (prediction - mean) @ direction, masking.mask > 0)
        whole = [values[:, :, None].expand(-1, -1, size) for values in columns]
        return tuple(self.unpatchify(values.contiguous(), patches.grid) for values in whole)  # type: ignore[return-value]

    @torch.no_grad()
    def after_update(self, share: float) -> None:
        """Update the teacher's moving average of the encoder; `share` is the finished part of the run, 0 to 1."""
        config = self.config.latent
        decay = config.decay + (config.final_decay - config.decay) * min(1.0, share / config.ramp)
        teacher: list[Tensor] = list(self.teacher.parameters())
        torch._foreach_lerp_(teacher, [one.detach() for one in self.encoder.parameters()], 1 - decay)


def _clip_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """(B, L, D) -> (B, D): the mean over the valid patches (B, L, 1)."""
    return (tokens * valid).sum(1) / valid.sum(1).clamp(min=1)


def _normalise(tokens: Tensor, valid: Tensor) -> Tensor:
    """Normalise each channel of (B, L, D) over the valid patches (B, L, 1) of its clip."""
    deviation = tokens - _clip_mean(tokens, valid)[:, None]
    return deviation / (_clip_mean(deviation.square(), valid)[:, None] + 1e-5).sqrt()
