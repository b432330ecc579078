"""Masked pre-training of the models in `raymae.models.MODELS`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from raymae.config import to_dict
from raymae.evaluation.png import png
from raymae.features.augment import apply_coloration, crop_frames, draw_coloration
from raymae.features.draws import Draws, mix
from raymae.inference.embedder import make_embedder
from raymae.models import MODELS, LatentAutoencoder, MaskedAutoencoder, load_pretrained
from raymae.models.masking import masking_of
from raymae.models.weights_file import save_weights
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import DeviceBatch, HostBatch, Transfer
from raymae.training.figures import Reconstruction, component_figure, reconstruction_figure
from raymae.training.spec import StageSpec
from raymae.training.tasks.base import Counts, TrainingError
from raymae.training.tasks.chosen_inputs import inputs_of
from raymae.training.tasks.inputs import find_sound, part, prefixed
from raymae.training.tasks.probe_monitor import monitor
from raymae.training.tasks.selection import LAST
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DRAWN, TRIED = 4, 16
"""Clips in the figure of reconstructions, and those that they are chosen from."""

LEAST_VARIANCE = 0.1
"""Of a teacher's targets (`raymae.models.latent.Targets`), as a share of what unrelated blocks have on average, 1 over
their number: below, they have collapsed."""


class PretrainTask:
    """Reconstruct the masked patches of the clips of train and pool."""

    head_steps = 0
    selection = LAST
    averaged: nn.Module | None = None
    divisors = 2

    def __init__(self, spec: StageSpec) -> None:
        self.spec, self.seed = spec, spec.seed()
        self.config = spec.config.pretrain
        self.order, self.clip_ids = spec.order(), spec.store.clip_ids
        self.always_masks = spec.always_masks
        self.audio = spec.config.audio
        self.inputs = inputs_of(spec, self.config.augment)
        self.model = MODELS[spec.config.model.name](self.audio, spec.config.model)
        if spec.encoder:
            load_pretrained(self.model, load_tensors(spec.encoder.read_checked("model.safetensors")))
        self.teacher_view = spec.config.model.latent.teacher_view if spec.config.model.name == "latent" else "same"
        sources = spec.store.clips["source"].combine_chunks().dictionary_encode()
        self.source_names = sources.dictionary.to_pylist()
        self.source_of_row = spec.store.tables.array(sources.indices.to_numpy())
        self.used_sources = np.unique(self.source_of_row[np.concatenate(self.order.rows)])
        self.counted: tuple[str, ...] = ("patches", "clips")
        if len(self.used_sources) > 1:
            self.counted += tuple(f"source {self.source_names[k]}" for k in self.used_sources)

    def begin(self, device: torch.device) -> None:
        """Nothing to do: the weights are initialised already."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; those of one dimension and the tokens without weight decay."""
        return self.model.parameter_groups(self.config.weight_decay)

    def prepare(self, clips: Clips, transfer: Transfer) -> tuple[HostBatch, Counts]:
        """Decide crops, coloration and masks of some clips; count removed patches, clips and patches by source."""
        draws = Draws(mix(self.seed, 5), clips.places, clips.group_size)
        model, augment = self.spec.config.model, self.config.augment
        frames = self.inputs.take(clips, draws, draws, transfer)
        sound = find_sound(frames, model.patch_size, self.audio.silence)
        settings = frames.valid_frames, augment, self.audio
        color = draw_coloration(*settings, draws, self.spec.responses, frames.gain)
        valid = sound.without_hidden(color)[:, 0]
        drawn = color | self.model.draw(valid, sound.grid, draws, always=self.always_masks)
        drawn |= {"valid_frames": frames.valid_frames, "weight": clips.weight}
        if self.teacher_view == "other":
            other = draw_coloration(*settings, draws.named("teacher"), self.spec.responses, frames.gain)
            drawn |= prefixed("teacher.", other)
        elif self.teacher_view == "clean" and frames.gain is not None:
            offsets = np.broadcast_to(frames.gain, (len(valid), self.audio.n_mels))
            drawn["teacher.offsets"] = offsets.astype(np.float32)
        removed = ~drawn["kept"] & np.repeat(valid, model.masks_per_clip, axis=0)
        patches = removed.reshape(len(valid), -1).sum(1) * clips.weight
        counts = [patches.sum(), (valid.any(1) * clips.weight).sum() * model.masks_per_clip]
        if len(self.used_sources) > 1:
            drawn["source"] = self.source_of_row[clips.rows].astype(np.int64)
            counts += [patches[drawn["source"] == k].sum() for k in self.used_sources]
        return HostBatch(frames.log_mel, drawn, int(clips.places[0])), np.array(counts, np.float64)

    def training_step(
        self, model: nn.Module, batch: DeviceBatch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The squared error of the masked patches, also by source, and of models that have one that of whole clips."""
        log_mel, drawn = batch.log_mel.float(), batch.drawn
        student = apply_coloration(log_mel, drawn["valid_frames"], drawn)
        views = {}
        if self.teacher_view != "same":
            views["teacher_view"] = apply_coloration(log_mel, drawn["valid_frames"], part("teacher.", drawn))
        output = model(student, masking_of(drawn), **views)
        error = output.error * drawn["weight"]
        loss, found = error.sum() / totals["patches"], {}
        if output.clip_error is not None:
            weight = self.spec.config.model.latent.clip_weight
            loss = loss + weight * (output.clip_error * drawn["weight"]).sum() / totals["clips"]
        if output.target_variance is not None:
            clips = totals["clips"] / self.spec.config.model.masks_per_clip
            found["target_variance"] = (output.target_variance * drawn["weight"]).sum() / clips
        return loss, found | self._loss_by_source(drawn, error.detach(), totals)

    def _loss_by_source(
        self, drawn: Mapping[str, Tensor], error: Tensor, totals: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if "source" not in drawn:
            return {}
        names = {int(k): self.source_names[k] for k in self.used_sources}
        return {
            f"loss/{name}": (error * (drawn["source"] == k)).sum() / totals[f"source {name}"]
            for k, name in names.items()
        }

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """TrainingError where the teacher's targets are constant or not finite: nothing is learnt from them."""
        model, train = self.spec.config.model, self.config
        latent, variance = model.latent, metrics.get("target_variance", 1.0)
        least = LEAST_VARIANCE / (latent.teacher_layers or model.depth)
        if variance < least:
            raise TrainingError(
                f"the teacher's targets have collapsed: all patches of a clip have the same, or they are not finite "
                f"(target_variance = {variance:.2g}, at least {least:.2g} is needed). Start anew with a smaller "
                f"pretrain.lr (it is {train.peak_lr:g}), more pretrain.warmup_epochs ({train.warmup_epochs:g}), or a "
                f"slower teacher: model.latent.decay ({latent.decay:g}) and model.latent.final_decay "
                f"({latent.final_decay:g}) closer to 1"
                + (", or with pretrain.precision = bf16" if train.precision == "fp16" else "")
            )

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
        settings = {"audio": config.audio.front_end(), "model": to_dict(config.model)}
        crop_seconds = self.config.augment.crop_seconds
        artifact.write_json("model.json", {"format": 1, "crop_seconds": crop_seconds, **settings})
        for name, figure in self.figures(model.eval()).items():
            artifact.write_bytes(f"figures/{name}.png", png(figure))

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """The reconstructions of always the same clips, under the same masks."""
        return {"reconstruction": self.reconstructions(model)}

    @cached_property
    def drawn_rows(self) -> NDArray[np.int64]:
        """The rows of at most `DRAWN` clips that sound: of some all over the order, those with the fewest silent values
        in the part that is drawn."""
        rows = np.concatenate(self.order.rows)
        rows = np.unique(rows[np.linspace(0, len(rows) - 1, min(TRIED, len(rows))).astype(int)])
        log_mel, valid_frames = self.spec.store.read(rows)
        length = crop_frames(self.config.augment, self.audio)
        sounding = [
            (one[: min(length, frames)] > self.audio.silence).mean()
            for one, frames in zip(log_mel, valid_frames, strict=True)
        ]
        most = np.argsort(-np.round(sounding, 2), kind="stable")  # of equal ones, those spread over the order
        best = most[: np.count_nonzero(np.round(sounding, 2) == np.round(sounding, 2).max())]
        chosen = most[:DRAWN] if len(best) < DRAWN else best[np.linspace(0, len(best) - 1, DRAWN).astype(int)]
        return np.sort(rows[chosen])

    @torch.inference_mode()
    def reconstructions(self, model: nn.Module) -> Figure:
        """A figure of some clips' beginnings, as long as in training: input, visible patches and reconstruction."""
        drawn = [self.reconstruction(model, int(row), place) for place, row in enumerate(self.drawn_rows)]
        draw = component_figure if isinstance(model, LatentAutoencoder) else reconstruction_figure
        return draw(drawn, self.audio, f"mask ratio {self.spec.config.model.mask_ratio}")

    def reconstruction(self, model: nn.Module, row: int, place: int) -> Reconstruction:
        """What the model makes of a clip, under the mask of the `place`-th one that is drawn."""
        log_mel, valid_frames = self.spec.store.read(np.array([row]))
        length = crop_frames(self.config.augment, self.audio)
        log_mel, valid_frames = log_mel[:, :length], valid_frames.clip(max=length)
        draws = Draws(mix(self.seed, 6), np.array([place]))
        network, device = cast(MaskedAutoencoder, model), next(model.parameters()).device
        clip = torch.from_numpy(log_mel).float().to(device)
        frames = torch.from_numpy(valid_frames).long().to(device)

        def visible(values: Tensor) -> NDArray[Any]:
            return np.asarray(values[0, : int(valid_frames[0]), : self.audio.n_mels].cpu().numpy())

        if isinstance(network, LatentAutoencoder):
            target, guess, removed = network.component_maps(clip, frames, draws)
            maps = {"target, first component": visible(target), "prediction of it": visible(guess)}
        else:
            made, removed = network.reconstruct(clip, frames, draws)
            maps = {"reconstruction": visible(made)}
        name = str(self.spec.store.clips["clip_id"][row])
        return Reconstruction(name=name, log_mel=visible(clip), removed=visible(removed), maps=maps)
