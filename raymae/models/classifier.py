"""Classifiers of log-mels: the pre-trained encoder with a head, and a CNN from scratch to compare with."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import timm
import torch
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from raymae.config import AudioConfig, FinetuneConfig, ModelConfig
from raymae.models.encoder import Encoder
from raymae.models.masking import Masking, choose_structured, index
from raymae.models.patches import Patches, grid_size
from raymae.models.pooling import cut_segments, row_stats, segment_starts, token_mean

ParameterGroup = dict[str, Any]


class AudioClassifier(nn.Module):
    """The encoder, a pooling of its patches, and a linear head.

    Pooling (`finetune.pool`), over the valid patches that the encoder saw:
        mean: their average, normalised (Audio-MAE).
        cls: the class token.
        row_stats: mean and standard deviation over time of every frequency row, each normalised over its D channels;
            a row of which nothing was seen is 0. Keeps apart what a recording device colours differently.

    While training, `finetune.time_mask_ratio` of the time columns and `freq_mask_ratio` of the frequency rows of
    patches are removed. With `finetune.segment_seconds` the encoder sees a clip segment by segment; the pooling is over
    the patches of all (cls: over their class tokens).
    """

    def __init__(self, audio: AudioConfig, model: ModelConfig, finetune: FinetuneConfig, num_classes: int) -> None:
        super().__init__()
        self.finetune = finetune
        self.segment = audio.frames_of(finetune.segment_seconds)
        self.encoder = Encoder(audio, model, drop_path=finetune.drop_path, depth=finetune.layer)
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
        self, log_mel: Tensor, valid_frames: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The logits (B, C) of log-mels (B, T, F).

        Args:
            log_mel: (B, T, F).
            valid_frames: (B,) int64, frames of each clip before padding; the default is all.
            generator: of the CPU, for the masks of training; the default is torch's global one.
        """
        patches = self.patchify(log_mel, valid_frames)
        return self.classify(patches, self.masking(patches, generator))

    def patchify(self, log_mel: Tensor, valid_frames: Tensor | None = None) -> Patches:
        """(B, T, F), centred if `finetune.subtract_band_mean` -> its patches, a row for each segment; with `finetune.with_raw`
        those of each clip as it is come before those of the centred one."""
        if self.finetune.subtract_band_mean:
            centred = subtract_band_mean(log_mel, valid_frames)
            log_mel = torch.stack([log_mel, centred], 1).flatten(0, 1) if self.finetune.with_raw else centred
            if self.finetune.with_raw and valid_frames is not None:
                valid_frames = valid_frames.repeat_interleave(2)
        least = self.encoder.patch_size[0]
        segments = len(segment_starts(log_mel.shape[1], self.segment, least))
        if segments > 1:
            if valid_frames is None:
                valid_frames = torch.full((len(log_mel),), log_mel.shape[1], device=log_mel.device)
            log_mel, valid_frames = cut_segments(log_mel, valid_frames, self.segment, least)
        return self.encoder.patchify(log_mel, valid_frames)._replace(segments=segments)

    def classify(self, patches: Patches, masking: Masking) -> Tensor:
        """The logits (B, C) from the kept patches."""
        return self.head(self.embed(patches, masking))

    def embed(self, patches: Patches, masking: Masking) -> Tensor:
        """The head's input (B, E) from the kept patches."""
        pooled = self.pool(self.encoder(patches, masking), masking, patches)
        return pooled.unflatten(0, (-1, 2)).flatten(1) if self.finetune.with_raw else pooled

    def masking(self, patches: Patches, generator: torch.Generator | None) -> Masking:
        """All valid patches; while training, those that structured masking leaves."""
        kept = patches.valid
        if self.training:
            ratios = self.finetune.time_mask_ratio, self.finetune.freq_mask_ratio
            kept = choose_structured(kept, patches.grid, *ratios, generator)
        return index(kept, patches.values.device)

    def pool(self, tokens: Tensor, masking: Masking, patches: Patches) -> Tensor:
        """(B S, 1 + K, D) of S segments a clip -> the head's input (B, D), or (B, 2 x rows x D) for row_stats."""
        n_rows, segments = patches.grid[1], patches.segments
        if self.finetune.pool == "cls":
            return self.norm(tokens[:, 0].unflatten(0, (-1, segments)).mean(1))
        ids = masking.ids_keep
        seen = torch.ones_like(ids) if masking.attend is None else masking.attend
        # a clip's segments side by side: (B, S K)
        tokens, ids, seen = (one.unflatten(0, (-1, segments)).flatten(1, 2) for one in (tokens[:, 1:], ids, seen))
        if self.finetune.pool == "mean":
            return self.norm(token_mean(tokens, seen))
        membership = functional.one_hot(ids % n_rows, n_rows) * seen[:, :, None]
        stats = row_stats(tokens, membership)
        present = membership.float().amax(1)[:, None, :, None]
        return (self.norm(stats) * present).flatten(1)

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Every parameter once, by layer: "encoder.0" is the class token and the patch embedding, "encoder.<i + 1>"
        block i, "head" the norms behind the blocks and the linear head.

        The rate of a layer is `layer_decay` times that of the layer above it; the head's factor is 1.
        Parameters of one dimension and the class token have no weight decay.
        """
        top = len(self.encoder.blocks) + 1
        groups: dict[tuple[int, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            exempt = parameter.ndim == 1 or name == "encoder.cls_token"
            groups[layer_id(name, top), 0.0 if exempt else weight_decay].append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": decay,
                "lr_scale": layer_decay ** (top - depth),
                "name": "head" if depth == top else f"encoder.{depth}",
            }
            for (depth, decay), parameters in groups.items()
        ]


def layer_id(parameter: str, top: int) -> int:
    """0 for what comes before the encoder's blocks, i + 1 for block i, `top` for what comes after them."""
    match parameter.split("."):
        case ["encoder", "cls_token" | "patch_embed", *_]:
            return 0
        case ["encoder", "blocks", block, *_]:
            return int(block) + 1
    return top


class Cnn(nn.Module):
    """A timm CNN on the log-mel as an image of one channel, trained from scratch.

    Of the fine-tuning settings only `subtract_band_mean` applies to the network itself: it has neither patches to mask nor
    pre-trained layers.
    """

    def __init__(self, audio: AudioConfig, finetune: FinetuneConfig, num_classes: int, cnn: str) -> None:
        super().__init__()
        self.finetune = finetune
        if not timm.is_model(cnn):  # create_model would go for "hf-hub:…" to the network
            raise ValueError(f"{cnn!r} is no network of timm")
        network = timm.create_model(cnn, in_chans=1, num_classes=num_classes, pretrained=False)
        self.cnn = network.to(memory_format=torch.channels_last)  # up to twice as fast on CPUs

    def forward(
        self, log_mel: Tensor, valid_frames: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The logits (B, C) of log-mels (B, T, F); see `AudioClassifier.forward`. Nothing is drawn."""
        if self.finetune.subtract_band_mean:
            log_mel = subtract_band_mean(log_mel, valid_frames)
        return self.cnn(log_mel.float()[:, None].contiguous(memory_format=torch.channels_last))

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Every parameter once, all at full rate: there are no pre-trained layers whose rate could decay."""
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim == 1]
        return [
            {"params": matrices, "weight_decay": weight_decay, "lr_scale": 1.0, "name": "cnn"},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0, "name": "cnn"},
        ]


def build_classifier(
    audio: AudioConfig, model: ModelConfig, finetune: FinetuneConfig, num_classes: int, cnn: str | None = None
) -> AudioClassifier | Cnn:
    """The CNN of that timm name, or else the encoder's classifier."""
    if cnn:
        return Cnn(audio, finetune, num_classes, cnn)
    return AudioClassifier(audio, model, finetune, num_classes)


def subtract_band_mean(log_mel: Tensor, valid_frames: Tensor | None = None) -> Tensor:
    """(B, T, F) without each clip's mean level of every band, over its valid frames; padding stays as it is.

    A short impulse response adds nearly a constant to each band of a log-mel, so this removes most of a recording
    device's colour.
    """
    log_mel = log_mel.float()
    if valid_frames is None:
        return log_mel - log_mel.mean(1, keepdim=True)
    valid = (torch.arange(log_mel.shape[1], device=log_mel.device) < valid_frames[:, None])[:, :, None]
    mean = (log_mel * valid).sum(1, keepdim=True) / valid_frames[:, None, None].clamp(min=1)
    return torch.where(valid, log_mel - mean, log_mel)
