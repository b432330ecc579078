"""Embeddings of clips from any layer of a frozen encoder. Works without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor

from raymae.config import AudioConfig, AugmentConfig, FinetuneConfig, ModelConfig, from_dict, redact
from raymae.features.augment import crop_frames, segment_frames
from raymae.models import AudioClassifier, Encoder, load_encoder
from raymae.models.classifier import subtract_band_mean
from raymae.models.encoder import select
from raymae.models.masking import only
from raymae.models.pooling import cut_segments, row_stats, segment_starts, token_mean
from raymae.storage.folder import Folder
from raymae.storage.found import what_is_there

Pool = Literal["row_stats", "mean", "cls"]


@dataclass(frozen=True)
class Embedder:
    """A frozen encoder, and the layers and segments that embeddings are computed from.

    A clip longer than the crops of pre-training is cut into segments of that length, which are encoded one by one; the
    tokens of all segments are pooled together.
    """

    encoder: Encoder
    audio: AudioConfig
    model: ModelConfig
    layers: tuple[int, ...]
    """Blocks, counted from 1, whose outputs are averaged."""
    segment: int
    """Frames of a segment."""
    subtract_band_mean: bool = False
    """Subtract each clip's mean of every band first, as its classifier does with `finetune.subtract_band_mean`."""

    def clips(
        self, log_mel: NDArray[np.floating], valid_frames: NDArray[np.integer], pool: Pool = "row_stats"
    ) -> NDArray[np.float32]:
        """One vector per clip, (B, E).

        Args:
            log_mel: (B, T, F), normalised.
            valid_frames: (B,), frames of each clip before padding.
            pool: row_stats: mean and standard deviation over time of every frequency row of patches (E = 2 x rows x D);
                mean: the mean of all patches (E = D); cls: the mean of the segments' class tokens (E = D).
        """
        patches, classes, valid = self._tokens(log_mel, valid_frames)
        batch, columns, rows, width = patches.shape
        tokens, weight = patches.view(batch, columns * rows, width), valid.view(batch, columns * rows)
        if pool == "cls":
            found = classes.mean(1)
        elif pool == "mean":
            found = token_mean(tokens, weight)
        else:
            member = torch.eye(rows, device=tokens.device).repeat(columns, 1)
            found = row_stats(tokens, member[None] * weight[:, :, None]).flatten(1)
        return np.asarray(found.float().cpu().numpy())

    def frames(
        self, log_mel: NDArray[np.floating], valid_frames: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One vector per time column of patches, (B, columns, D), and the first frame of each column, (columns,).

        A vector is the mean over the column's frequency rows, 0 for a column of padding.
        """
        patches, _, valid = self._tokens(log_mel, valid_frames)
        batch, columns, rows, width = patches.shape
        found = token_mean(patches.reshape(-1, rows, width), valid.reshape(-1, rows)).view(batch, columns, width)
        return np.asarray(found.float().cpu().numpy()), self.column_starts(log_mel.shape[1])

    def column_starts(self, n_frames: int) -> NDArray[np.int64]:
        """First frames (columns,) of the time columns of patches, all segments one after the other."""
        frames = self.encoder.patch_size[0]
        columns = -(-min(n_frames, self.segment) // frames)
        starts = segment_starts(n_frames, self.segment, frames)
        return np.concatenate([start + frames * np.arange(columns) for start in starts])

    @torch.inference_mode()
    def _tokens(
        self, log_mel: NDArray[np.floating], valid_frames: NDArray[np.integer]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patch tokens (B, columns, rows, D), class tokens of the S segments (B, S, D), and 1 where patches are valid,
        else 0 (B, columns, rows)."""
        device = self.encoder.cls_token.device
        x, frames = torch.from_numpy(log_mel).to(device).float(), torch.from_numpy(valid_frames).to(device).long()
        if self.subtract_band_mean:
            x = subtract_band_mean(x, frames)
        segments = cut_segments(x, frames, self.segment, self.encoder.patch_size[0])
        patches = self.encoder.patchify(segments[0])
        masking = only(self.encoder.valid(patches, segments[1]))
        outputs = self.encoder.layer_outputs(patches, masking.kept)
        tokens = torch.stack([outputs[layer - 1] for layer in self.layers]).float().mean(0)
        valid = masking.mask == 0
        placed = select(tokens, torch.where(valid, 1 + masking.ids_restore, 0)) * valid[:, :, None]
        columns, rows = patches.grid
        count = len(segments[0]) // len(log_mel)
        shape = (len(log_mel), count * columns, rows)
        classes = tokens[:, 0].view(len(log_mel), count, -1)
        return placed.view(*shape, -1), classes, valid.view(*shape).float()


def make_embedder(
    encoder: Encoder,
    audio: AudioConfig,
    model: ModelConfig,
    segment: int,
    layers: Sequence[int] = (),
    subtract_band_mean: bool = False,
) -> Embedder:
    """An embedder of an encoder that was trained on `segment` frames at a time; by default from its last layer.

    Raises:
        ValueError: there is no such layer.
    """
    model = replace(model, depth=len(encoder.blocks))
    chosen = tuple(layers) or (model.depth,)
    wrong = [layer for layer in chosen if not 1 <= layer <= model.depth]
    if wrong:
        raise ValueError(f"there is no layer {wrong[0]}: the encoder has {model.depth} blocks, counted from 1")
    return Embedder(encoder, audio, model, chosen, segment, subtract_band_mean)


def read_card(folder: Folder) -> tuple[str, dict[str, Any]]:
    """Name and content of the JSON file that describes an encoder's folder; ValueError where it holds no encoder."""
    name = next((name for name in ("model.json", "classifier.json") if folder.exists(name)), None)
    if name is None:
        raise ValueError(
            f"{redact(folder.url)} holds no encoder: it has neither model.json nor classifier.json"
            f"{what_is_there(folder)}"
        )
    card = folder.read_json(name)
    if card.get("cnn"):
        raise ValueError(f"{redact(folder.url)} holds a CNN ({card['cnn']}), which has no patch tokens")
    return name, card


def read_embedder(folder: Folder, layers: Sequence[int] = (), torch_device: str = "cpu") -> Embedder:
    """The embedder of the folder of a pre-training or a classifier; ValueError where it is neither."""
    name, card = read_card(folder)
    audio, model = from_dict(AudioConfig, card["audio"]), from_dict(ModelConfig, card["model"])
    band_mean = False
    if name == "classifier.json":
        finetune = from_dict(FinetuneConfig, card["finetune"])
        band_mean, segment = finetune.subtract_band_mean, segment_frames(finetune, audio)
        encoder = AudioClassifier(audio, model, finetune, 2).encoder
    else:
        segment = crop_frames(AugmentConfig(crop_seconds=card["crop_seconds"]), audio)
        encoder = Encoder(audio, model)
    weights = load_tensors(folder.read_checked("model.safetensors"))
    of_encoder = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
    encoder.load_state_dict(of_encoder)
    return make_embedder(encoder.to(torch_device).eval(), audio, model, segment, layers, band_mean)


@dataclass(frozen=True)
class Reading:
    """The weights of an encoder and how clips are embedded with it."""

    classifier: Folder
    """Folder of the classifier whose architecture, front end and segments are used."""
    weights: Folder | None
    """Folder of the encoder's weights; None for random initialisation."""
    subtract_band_mean: bool
    """Subtract each clip's mean of every band first."""
    pool: Pool
    """Pooling of a clip's patches to one vector: the mean of ViT-B has 768 values, row statistics up to 24,576, on
    which probes take minutes."""

    def embedder(self, torch_device: str, seed: int = 0) -> Embedder:
        """Load the frozen encoder; `seed` is that of random weights."""
        _, card = read_card(self.classifier)
        audio, model = from_dict(AudioConfig, card["audio"]), from_dict(ModelConfig, card["model"])
        finetune = from_dict(FinetuneConfig, card["finetune"])
        torch.manual_seed(seed)
        classifier = AudioClassifier(audio, model, finetune, 2)
        if self.weights is not None:
            load_encoder(classifier, load_tensors(self.weights.read_checked("model.safetensors")))
        encoder = classifier.encoder.to(torch_device).eval()
        layer = len(encoder.blocks)
        return make_embedder(encoder, audio, model, segment_frames(finetune, audio), (layer,), self.subtract_band_mean)
