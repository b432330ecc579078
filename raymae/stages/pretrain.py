"""Masked pre-training: the stage around `MODELS`."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from raymae.augment import augment, crop_frames
from raymae.checkpoint import save_weights
from raymae.config import to_dict
from raymae.models import MODELS, MaskedAutoencoder
from raymae.order import mix
from raymae.report import png, reconstruction_figure
from raymae.selection import LAST
from raymae.session import Session
from raymae.spec import StageSpec
from raymae.windows import MicroBatch


class PretrainTask:
    """Reconstruct the removed patches of every clip of train and pool."""

    max_seconds = None
    head_steps = 0
    selection = LAST

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.config, self.seed = spec, spec.config.pretrain, spec.seed()
        self.order = spec.order()
        self.audio = spec.config.audio
        self.model = MODELS[spec.config.model.name](self.audio, spec.config.model)
        sources = spec.store.clips["source"].combine_chunks().dictionary_encode()
        self.source_names = sources.dictionary.to_pylist()
        self.source_of_row = sources.indices.to_numpy()
        self.used_sources = np.unique(self.source_of_row[np.concatenate(self.order.rows)])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; those of one dimension and the tokens without weight decay."""
        return self.model.parameter_groups(self.config.weight_decay)

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the removed patches, also by source."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        log_mel, valid_frames = batch.to_torch(device)
        log_mel, valid_frames = augment(log_mel, valid_frames, self.config.augment, self.audio, generator)
        output = model(log_mel, valid_frames, generator)
        return output.loss, self._loss_by_source(batch, output.loss_per_clip.detach())

    def _loss_by_source(self, batch: MicroBatch, loss: Tensor) -> dict[str, Tensor]:
        if len(self.used_sources) == 1:
            return {}
        source = torch.from_numpy(self.source_of_row[batch.rows]).to(loss.device)
        return {f"loss/{self.source_names[k]}": loss[source == int(k)].mean() for k in self.used_sources}

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Nothing yet: the loss says little about the features."""
        return {}

    def save(self, model: nn.Module) -> None:
        """Write the weights, what is needed to build the model, and a picture of what it can do."""
        artifact, config = self.spec.artifact, self.spec.config
        artifact.write_bytes("model.safetensors", save_weights(model))
        settings = {"audio": to_dict(config.audio), "model": to_dict(config.model)}
        artifact.write_json("model.json", {"format": 1, **settings})
        for name, figure in self.figures(model.eval()).items():
            artifact.write_bytes(f"figures/{name}.png", png(figure))

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """The same clip, always under the same mask."""
        return {"reconstruction": self.reconstruction(model)}

    @torch.inference_mode()
    def reconstruction(self, model: nn.Module) -> Figure:
        """The beginning of the first clip, as long as in training: what the model was shown and what it made of it."""
        row = self.order.rows[0][:1]
        log_mel, valid_frames = self.spec.store.read(row)
        length = crop_frames(self.config.augment, self.audio)
        log_mel, valid_frames = log_mel[:, :length], valid_frames.clip(max=length)
        generator = torch.Generator().manual_seed(mix(self.seed, 6) >> 1)
        clip = torch.from_numpy(log_mel).float()
        device = next(model.parameters()).device
        made, removed = cast(MaskedAutoencoder, model).reconstruct(
            clip.to(device), torch.from_numpy(valid_frames).long().to(device), generator
        )
        n_frames = int(valid_frames[0])
        title = f"{self.spec.store.clips['clip_id'][int(row[0])]}, mask ratio {self.spec.config.model.mask_ratio}"
        parts = (clip[0].numpy(), removed[0].cpu().numpy(), made[0].cpu().numpy())
        shown, hidden, result = (part[:n_frames, : self.audio.n_mels] for part in parts)
        return reconstruction_figure(shown, hidden, result, self.audio, title)
