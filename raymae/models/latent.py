"""Masked prediction of latent targets (data2vec 2.0, Baevski et al. 2022; EAT, Chen et al. 2024)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, ModelConfig
from raymae.models.encoder import Encoder, EncoderBlock
from raymae.models.mae import (
    MaeOutput,
    MaskedAutoencoder,
    by_clip,
    first_masks,
    removed_valid,
    repeat_clips,
    summed_error,
)
from raymae.models.masking import Kept, Masking, RandomBits, every
from raymae.models.patches import Patches, all_frames


class MlpBlock(EncoderBlock):
    """The encoder's block, which gives the output of its MLP, too."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, drop: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> the block's output (B, N, D), and that of its MLP before it is added to the residual."""
        x, changed = self.parts(x, attn_mask, drop)
        return x + changed, changed


class MlpTeacher(Encoder):
    """Encoder whose layer outputs are those of the blocks' MLPs (`LatentConfig.targets` = mlp)."""

    block_type = MlpBlock

    def layer_outputs(self, patches: Patches, kept: Kept, drop: Tensor | None = None) -> list[Tensor]:
        """Outputs of the MLPs of all blocks in order, (B, 1 + K, D) each, not normalised; for the teacher, so without
        `drop`."""
        tokens, attn_mask = self.embed(patches, kept)
        outputs = []
        for block in self.blocks:
            tokens, changed = block(tokens, attn_mask)
            outputs.append(changed)
        return outputs


class Targets(NamedTuple):
    """What is predicted of some clips."""

    patches: Tensor
    """(B, L, D): of every patch."""
    clip: Tensor
    """(B, D): of the clip as a whole."""
    variance: Tensor
    """(B,): of the patches' targets before their last norm, over the patches of a clip, a mean over channels. 1 where
    the layers that are averaged agree; 0 where all patches have the same features, or they aren't finite."""


class LatentAutoencoder(MaskedAutoencoder):
    """Masked autoencoder whose decoder predicts a teacher's features of the whole clip instead of pixels.

    The teacher is an exponential moving average of the encoder and processes every valid patch. A patch's target is its
    token averaged over the teacher's upper blocks, in each of which every channel is normalised over the patches of the
    clip (data2vec 2.0); the average is then normalised over the channels. All masks of a clip share one pass of the
    teacher. The class token predicts the clip's mean of the blocks' tokens, each normalised over its channels only, or
    that of the patches' targets. `LatentConfig` says what is taken of which blocks; the recipe `eat` has EAT's choices.

    The teacher is part of the state_dict, so that checkpoints include it; after pre-training it isn't used any more.
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig) -> None:
        super().__init__(audio, model)
        itself = model.latent.clip_target == "patches"
        self.clip_pred = nn.Identity() if itself else nn.Linear(model.embed_dim, model.embed_dim)
        self.teacher = self.make_teacher(audio).requires_grad_(False)

    def make_teacher(self, audio: AudioConfig) -> Encoder:
        """The teacher, with the encoder's weights."""
        if self.config.latent.targets == "block":
            return copy.deepcopy(self.encoder)
        teacher = MlpTeacher(audio, self.config)
        teacher.load_state_dict(self.encoder.state_dict())
        return teacher

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
        target = self.targets(patches if teacher_view is None else self.patchify(teacher_view), valid)
        patches = repeat_clips(patches, times)
        latent = self.forward_encoder(patches, masking)
        prediction = self.forward_decoder(latent, patches, masking)
        weight = removed_valid(masking)
        error, count = summed_error(prediction, target.patches.repeat_interleave(times, dim=0), weight)
        clip_error = self.clip_pred(latent[:, 0]).float() - target.clip.repeat_interleave(times, dim=0)
        clip_error = by_clip(clip_error.square().mean(1), times)
        if valid is not None:
            clip_error = clip_error * valid.any(1)
        sums = by_clip(error, times), by_clip(count, times)
        return MaeOutput(*sums, prediction, masking.mask, clip_error, target.variance)

    @torch.no_grad()
    def targets(self, patches: Patches, valid: Tensor | None) -> Targets:
        """The teacher's targets of some clips, by their `valid` patches (B, L); None: all are."""
        batch, number = patches.values.shape[:2]
        count = self.config.latent.teacher_layers or -(-self.config.depth // 2)
        everything = every(valid, batch, number, patches.values.device)
        outputs = self.teacher.layer_outputs(patches, everything)[-count:]
        tokens = [output[:, 1:].float() for output in outputs]
        used = torch.ones(1, 1, 1, device=patches.values.device) if valid is None else valid[:, :, None].float()
        used = used.expand(batch, number, 1)
        average = torch.stack([_normalise(one, used) for one in tokens]).mean(0)
        variance = _clip_mean(average.square(), used).mean(1)
        patch = functional.layer_norm(average, average.shape[2:])
        if self.config.latent.clip_target == "patches":
            clip = _clip_mean(patch, used)
        else:
            clip = torch.stack([_clip_mean(functional.layer_norm(one, one.shape[2:]), used) for one in tokens]).mean(0)
            clip = functional.layer_norm(clip, clip.shape[1:])
        return Targets(patch, clip, variance.where(variance.isfinite(), 0))

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
        target = self.targets(patches, valid).patches
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
