"""Masked pre-training of the models in `raymae.models.MODELS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.config import to_dict
from raymae.features.augment import apply_coloration, apply_geometry, crop_frames
from raymae.inference.embedder import make_embedder
from raymae.models import MODELS, LatentAutoencoder, MaskedAutoencoder, load_pretrained
from raymae.models.patches import has_sound
from raymae.models.weights_file import save_weights
from raymae.storage.png import png
from raymae.training.batches.order import mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.figures import component_figure, reconstruction_figure
from raymae.training.spec import StageSpec
from raymae.training.tasks.probe_monitor import monitor
from raymae.training.tasks.selection import LAST
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PretrainTask:
    """Reconstruct the masked patches of the clips of train and pool."""

    head_steps = 0
    selection = LAST
    averaged: nn.Module | None = None

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.seed = spec, spec.seed()
        self.config = spec.config.pretrain
        self.max_seconds = None
        self.order, self.clip_ids = spec.order(), spec.store.clip_ids
        self.audio = spec.config.audio
        self.model = MODELS[spec.config.model.name](self.audio, spec.config.model)
        if spec.encoder:
            load_pretrained(self.model, load_tensors(spec.encoder.read_checked("model.safetensors")))
        self.teacher_view = spec.config.model.latent.teacher_view if spec.config.model.name == "latent" else "same"
        sources = spec.store.clips["source"].combine_chunks().dictionary_encode()
        self.source_names = sources.dictionary.to_pylist()
        self.source_of_row = sources.indices.to_numpy()
        self.used_sources = np.unique(self.source_of_row[np.concatenate(self.order.rows)])

    def begin(self, device: torch.device) -> None:
        """Nothing to do: the weights are initialised already."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; those of one dimension and the tokens without weight decay."""
        return self.model.parameter_groups(self.config.weight_decay)

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss on the masked patches, also by source."""
        generator = torch.Generator().manual_seed(mix(self.seed, 5, batch.index) >> 1)
        log_mel, valid_frames = batch.to_torch(device)
        settings = self.config.augment, self.audio, generator
        log_mel, valid_frames = apply_geometry(log_mel, valid_frames, *settings)
        colored = apply_coloration(log_mel, valid_frames, *settings, self.spec.responses)
        # SpecAugment's edges would give silence patches to predict
        student = torch.where(has_sound(log_mel, valid_frames)[:, None, None], colored, log_mel)
        views = {}
        if self.teacher_view != "same":
            views["teacher_view"] = log_mel
            if self.teacher_view == "other":
                views["teacher_view"] = apply_coloration(log_mel, valid_frames, *settings, self.spec.responses)
        output = model(student, valid_frames, generator, **views)
        return output.loss, self._loss_by_source(batch, output.loss_per_clip.detach())

    def _loss_by_source(self, batch: MicroBatch, loss: Tensor) -> dict[str, Tensor]:
        if len(self.used_sources) == 1:
            return {}
        source = torch.from_numpy(self.source_of_row[batch.rows]).to(loss.device)
        return {f"loss/{self.source_names[k]}": loss[source == int(k)].mean() for k in self.used_sources}

    def after_update(self, share: float) -> None:
        """Update the teacher of a model that has one."""
        self.model.after_update(share)

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Probes of the encoder's embeddings (`raymae.training.tasks.probe_monitor`)."""
        encoder, length = cast(MaskedAutoencoder, model).encoder, crop_frames(self.config.augment, self.audio)
        return monitor(self.spec, make_embedder(encoder, self.audio, self.spec.config.model, length), session)

    def save(self, model: nn.Module) -> None:
        """Write the weights, the settings that build the model, and its figures."""
        artifact, config = self.spec.artifact, self.spec.config
        artifact.write_bytes("model.safetensors", save_weights(model))
        settings = {"audio": to_dict(config.audio), "model": to_dict(config.model)}
        crop_seconds = self.config.augment.crop_seconds
        artifact.write_json("model.json", {"format": 1, "crop_seconds": crop_seconds, **settings})
        for name, figure in self.figures(model.eval()).items():
            artifact.write_bytes(f"figures/{name}.png", png(figure))

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """The reconstruction of always the same clip, under the same mask."""
        return {"reconstruction": self.reconstruction(model)}

    @torch.inference_mode()
    def reconstruction(self, model: nn.Module) -> Figure:
        """A figure of the first clip's beginning, as long as in training: input, visible patches and reconstruction."""
        row = self.order.rows[0][:1]
        log_mel, valid_frames = self.spec.store.read(row)
        length = crop_frames(self.config.augment, self.audio)
        log_mel, valid_frames = log_mel[:, :length], valid_frames.clip(max=length)
        generator = torch.Generator().manual_seed(mix(self.seed, 6) >> 1)
        clip, frames = torch.from_numpy(log_mel).float(), torch.from_numpy(valid_frames).long()
        network, device = cast(MaskedAutoencoder, model), next(model.parameters()).device
        clip, frames = clip.to(device), frames.to(device)
        title = f"{self.spec.store.clips['clip_id'][int(row[0])]}, mask ratio {self.spec.config.model.mask_ratio}"

        def visible(values: Tensor) -> NDArray[Any]:
            return np.asarray(values[0, : int(valid_frames[0]), : self.audio.n_mels].cpu().numpy())

        if isinstance(network, LatentAutoencoder):
            target, guess, removed = network.component_maps(clip, frames, generator)
            panels = {"target, first component": visible(target), "prediction of it": visible(guess)}
            return component_figure(visible(clip), visible(removed), panels, self.audio, title)
        made, removed = network.reconstruct(clip, frames, generator)
        return reconstruction_figure(visible(clip), visible(removed), visible(made), self.audio, title)
