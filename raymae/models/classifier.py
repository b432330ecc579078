"""Classifiers of log-mels: the pre-trained encoder with a head, and a CNN trained from scratch as a baseline."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers import LayerNorm
from torch import Tensor, nn

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig
from raymae.models.encoder import Encoder
from raymae.models.masking import Drawn, Kept, RandomBits, arrange_kept, choose_structured, kept_structured, only
from raymae.models.patches import Grid, Patches, all_frames, check_shape, grid_size
from raymae.models.pooling import cut_segments, one_hot, row_stats, segment_starts, shifted, token_mean

ParameterGroup = dict[str, Any]


class AudioClassifier(nn.Module):
    """The encoder, a pooling of its patches, and a linear head.

    Pooling (`finetune.pool`), over the valid patches of the encoder's input:
        mean: their average, normalised (Audio-MAE).
        cls: the class token.
        row_stats: mean and standard deviation over time of every frequency row, each normalised over its D channels;
            0 for a row without patches. Keeps the rows, whose level depends on the recording device, apart.

    In training, `finetune.time_mask_ratio` of the time columns and `freq_mask_ratio` of the frequency rows of patches
    are removed. With `finetune.segment_seconds` the encoder processes a clip in segments; the pooling is over the
    patches of all of them (cls: over their class tokens); in prediction also over those of `finetune.shifts`.
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig, finetune: FinetuneConfig, num_classes: int) -> None:
        super().__init__()
        self.finetune = finetune
        self.segment = audio.frames_of(finetune.segment_seconds)
        self.encoder = Encoder(audio, model, depth=finetune.layer)
        pools_patches = finetune.pool != "cls"
        self.norm: nn.Module = LayerNorm(model.embed_dim) if pools_patches else nn.Identity()
        if pools_patches:
            self.encoder.norm = nn.Identity()  # the norm comes after the pooling
        n_rows = grid_size(audio.n_frames, audio.n_mels, model.patch_size)[1]
        pooled = model.embed_dim * (2 * n_rows if finetune.pool == "row_stats" else 1)
        self.head = nn.Linear(pooled * (2 if finetune.with_raw else 1), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        log_mel: Tensor,
        valid_frames: Tensor | None = None,
        kept: Kept | None = None,
        drop: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, C) of log-mels (B, T, F).

        Args:
            log_mel: (B, T, F).
            valid_frames: (B,) int64, frames of each clip before padding; the default is all.
            kept: the patches in the encoder's input, R rows for each clip; the default, for prediction, is `features`.
            drop: (B R, depth, 2), the factors of stochastic depth; None without it.
            hidden: see `subtract_band_mean`.
        """
        if kept is None:
            return self.head(self.features(log_mel, valid_frames, hidden))
        patches, _ = self.patchify(log_mel, valid_frames, hidden)
        return self.head(self.embed(patches, kept, drop))

    def features(self, log_mel: Tensor, valid_frames: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Input of the head (B, E) in prediction: from all valid patches, of every one of `finetune.shifts`."""
        patches, frames = self.patchify(log_mel, valid_frames, hidden, self.finetune.shifts)
        return self.embed(patches, only(self.encoder.valid(patches, frames)).kept)

    @property
    def variants(self) -> int:
        """Versions of a clip that are encoded side by side: as it is and without its band mean, or one of them."""
        return 2 if self.finetune.with_raw else 1

    def segment_starts(self, n_frames: int) -> list[int]:
        """First frames of the segments of a clip of so many frames."""
        return segment_starts(n_frames, self.segment, self.encoder.patch_size[0])

    def draw(self, valid: NDArray[np.bool_], grid: Grid, draws: RandomBits, always: bool = False) -> Drawn:
        """Draw the structured masks and stochastic depth of a training step: ids_keep, attend and drop.

        Args:
            valid: (B, S, L), the valid patches of the segments of each clip.
            always: see `raymae.models.masking.arrange`.
        """
        batch, segments, patches = valid.shape
        rows = self.variants * segments
        valid = np.repeat(valid[:, None], self.variants, 1).reshape(batch * rows, patches)
        own = draws.repeated(rows)
        ratios = self.finetune.time_mask_ratio, self.finetune.freq_mask_ratio
        drawn, _ = arrange_kept(choose_structured(valid, grid, *ratios, own), kept_structured(grid, *ratios), always)
        if self.finetune.drop_path:
            rates = np.linspace(0, self.finetune.drop_path, len(self.encoder.blocks))[:, None]
            shape = batch * rows, len(rates), 2
            stays = (own.bits("drop_path", 2 * len(rates)) >> np.uint64(11)).reshape(shape) * 2.0**-53 >= rates
            drawn["drop"] = (stays / (1 - rates)).astype(np.float32)
        return drawn

    def patchify(
        self,
        log_mel: Tensor,
        valid_frames: Tensor | None = None,
        hidden: Tensor | None = None,
        shifts: int = 1,
    ) -> tuple[Patches, Tensor]:
        """(B, T, F) -> patches, one row for each segment of each clip, and the rows' valid frames; the default is all.

        With several `shifts` (`raymae.models.pooling.shifted`), the segments of each come one after the other.

        With `finetune.subtract_band_mean` the band mean is subtracted first; with `finetune.with_raw` too, the rows of
        each clip as it is come before those of the clip with the band mean subtracted.
        """
        if self.finetune.subtract_band_mean:
            normalised = subtract_band_mean(log_mel, valid_frames, hidden)
            log_mel = torch.stack([log_mel, normalised], 1).flatten(0, 1) if self.finetune.with_raw else normalised
            if self.finetune.with_raw and valid_frames is not None:
                valid_frames = valid_frames.repeat_interleave(2)
        if valid_frames is None:
            valid_frames = all_frames(log_mel)
        segments = len(self.segment_starts(log_mel.shape[1]))
        patch = self.encoder.patch_size[0]
        if shifts > 1:
            log_mel, valid_frames = shifted(log_mel, valid_frames, patch, shifts, self.encoder.silence)
        if log_mel.shape[1] > self.segment:
            log_mel, valid_frames = cut_segments(log_mel, valid_frames, self.segment, patch)
        return self.encoder.patchify(log_mel)._replace(segments=shifts * segments), valid_frames

    def embed(self, patches: Patches, kept: Kept, drop: Tensor | None = None) -> Tensor:
        """Input of the head (B, E) from the kept patches."""
        pooled = self.pool(self.encoder(patches, kept, drop), kept, patches)
        return pooled.unflatten(0, (-1, 2)).flatten(1) if self.finetune.with_raw else pooled

    def pool(self, tokens: Tensor, kept: Kept, patches: Patches) -> Tensor:
        """(B S, 1 + K, D), S segments per clip -> input of the head: (B, D), or (B, 2 x rows x D) for row_stats."""
        n_rows, segments = patches.grid[1], patches.segments
        if self.finetune.pool == "cls":
            return self.norm(tokens[:, 0].unflatten(0, (-1, segments)).mean(1))
        ids = kept.ids
        counts = torch.ones_like(ids) if kept.attend is None else kept.attend
        # concatenate the segments of a clip: (B, S K)
        tokens, ids, counts = (one.unflatten(0, (-1, segments)).flatten(1, 2) for one in (tokens[:, 1:], ids, counts))
        if self.finetune.pool == "mean":
            return self.norm(token_mean(tokens, counts))
        membership = one_hot(ids % n_rows, n_rows) * counts[:, :, None]
        stats = row_stats(tokens, membership)
        present = membership.float().amax(1)[:, None, :, None]
        return (self.norm(stats) * present).flatten(1)

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Every parameter once, grouped by layer for layer-wise learning-rate decay.

        "encoder.0" is the class token and the patch embedding, "encoder.<i + 1>" block i, "head" the norms after the
        blocks and the linear head. The learning rate of a layer is `layer_decay` times that of the layer above it; the
        head's factor is 1. One-dimensional parameters and the class token have no weight decay.
        """
        top = len(self.encoder.blocks) + 1
        # by whether they are exempt, not by their decay: moments are stored by place, and a decay of 0 changes no place
        groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            exempt = parameter.ndim == 1 or name == "encoder.cls_token"
            groups[layer_id(name, top), exempt].append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": 0.0 if exempt else weight_decay,
                "lr_scale": layer_decay ** (top - depth),
                "name": "head" if depth == top else f"encoder.{depth}",
            }
            for (depth, exempt), parameters in groups.items()
        ]


def layer_id(parameter: str, top: int) -> int:
    """Layer of a parameter: 0 before the encoder's blocks, i + 1 for block i, `top` after them."""
    match parameter.split("."):
        case ["encoder", "cls_token" | "patch_embed", *_]:
            return 0
        case ["encoder", "blocks", block, *_]:
            return int(block) + 1
    return top


class Cnn(nn.Module):
    """A timm CNN on the log-mel as an image of one channel, trained from scratch.

    Of the fine-tuning settings only `subtract_band_mean` applies to the network itself: it has neither patches to mask
    nor pre-trained layers.
    """

    def __init__(self, audio: AudioConfig, finetune: FinetuneConfig, num_classes: int, cnn: str) -> None:
        super().__init__()
        self.finetune, self.n_mels = finetune, audio.n_mels
        if not timm.is_model(cnn):  # create_model would download "hf-hub:…"
            raise ValueError(f"{cnn!r} is not a timm model")
        network = timm.create_model(cnn, in_chans=1, num_classes=num_classes, pretrained=False)
        self.cnn = network.to(memory_format=torch.channels_last)  # up to twice as fast on CPUs

    def forward(self, log_mel: Tensor, valid_frames: Tensor | None = None, *, hidden: Tensor | None = None) -> Tensor:
        """Logits (B, C) of log-mels (B, T, F) of valid frames (B,); `hidden` as in `subtract_band_mean`."""
        check_shape(log_mel, self.n_mels)
        if self.finetune.subtract_band_mean:
            log_mel = subtract_band_mean(log_mel, valid_frames, hidden)
        return self.cnn(log_mel.float()[:, None].contiguous(memory_format=torch.channels_last))

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Every parameter once, at the full learning rate: no layer is pre-trained, `layer_decay` is not used."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        return [
            {"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0, "name": "cnn"},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0, "name": "cnn"},
        ]


def build_classifier(
    audio: AudioConfig, model: ModelConfig, finetune: FinetuneConfig, num_classes: int, cnn: str | None = None
) -> AudioClassifier | Cnn:
    """Build the timm CNN of that name, or else the encoder's classifier."""
    if cnn:
        return Cnn(audio, finetune, num_classes, cnn)
    return AudioClassifier(audio, model, finetune, num_classes)


def subtract_band_mean(log_mel: Tensor, valid_frames: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
    """Subtract each clip's mean of every band over its valid frames from (B, T, F); padding is not changed.

    A short impulse response adds nearly a constant to each band of a log-mel, so this removes most of a recording
    device's frequency response. What SpecAugment masks is 0, the mean, as if it were masked afterwards.

    Args:
        hidden: (B, 2), first and end of the frames that SpecAugment masks: they don't count for the means. A masked
            band is constant over the others, so it needs no such care.
    """
    log_mel = log_mel.float()
    if valid_frames is None:
        return log_mel - log_mel.mean(1, keepdim=True)
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    valid = visible = (frames < valid_frames[:, None])[:, :, None]
    count = valid_frames
    if hidden is not None:
        first, end = hidden[:, :1], hidden[:, 1:]
        visible = valid & ~((first <= frames) & (frames < end))[:, :, None]
        count = valid_frames - (end - first)[:, 0]
    mean = (log_mel * visible).sum(1, keepdim=True) / count[:, None, None].clamp(min=1)
    return torch.where(valid, (log_mel - mean) * visible, log_mel)
