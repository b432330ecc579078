"""Finished and new models: `load_encoder`, `load_classifier`, `create_model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from raymae.api.features import FrontEnd, front_end_of
from raymae.api.results import Embeddings, Predictions, embeddings_of
from raymae.api.settings import Path, places, plain
from raymae.audio.errors import AudioError, SilentError
from raymae.audio.sources import open_clip
from raymae.config import (
    MODEL_SIZES,
    AudioConfig,
    Config,
    LabelLevel,
    ModelConfig,
    changed,
    from_dict,
    leaves,
    nearest,
    typed,
    with_size,
)
from raymae.config.values import require_choice
from raymae.inference.embedder import Embedder, Pool, read_card, read_embedder
from raymae.inference.labeller import label_table, labelled
from raymae.inference.predictor import Predictor
from raymae.inference.recording_embedder import RecordingEmbedder
from raymae.inference.sources import sources_of
from raymae.inference.windowed import Window
from raymae.models import MODELS, build_classifier, load_pretrained
from raymae.models import load_encoder as load_encoder_weights
from raymae.models.classifier import AudioClassifier
from raymae.pipeline.plan.init_weights import FILES, checked, find
from raymae.storage.folder import Folder
from raymae.tracking.model_uri import open_artifact

STORAGE = "raymae-storage"
"""Folder whose registry has the models:/ URIs, if there is no tracking URI."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A finished classifier with its front end."""

    predictor: Predictor

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the probabilities."""
        return self.predictor.class_names

    @property
    def audio(self) -> AudioConfig:
        """The front end."""
        return self.predictor.audio

    @property
    def module(self) -> nn.Module:
        """The network, of log-mels (B, T, F)."""
        return self.predictor.classifier.model

    def predict(self, recordings: Any, level: LabelLevel = "file") -> Predictions:
        """Class probabilities of recordings of any length.

        Args:
            recordings: one of them, or several in a list or a pandas.Series: paths, URLs, bytes of encoded files, and
                pairs (waveform, sample_rate), the waveform as `raymae.audio.waveform.from_array` takes it.
            level: file: a row for each recording, the average over its windows; window: a row for each window.
        """
        require_choice("level", level, ("file", "window"))
        sources = sources_of(recordings)
        found = [labelled(self.predictor, level, windows) for windows in self.predictor.each(sources, opened)]
        table = label_table(self.predictor, level, names_of(sources), found)
        return Predictions(class_names=tuple(self.class_names), table=table)


@dataclass(frozen=True)
class LoadedEncoder:
    """A finished encoder with its front end."""

    embedder: Embedder

    @property
    def audio(self) -> AudioConfig:
        """The front end."""
        return self.embedder.audio

    @property
    def module(self) -> nn.Module:
        """The network, of patches of log-mels (`raymae.models.encoder`)."""
        return self.embedder.encoder

    def embed(self, recordings: Any, level: LabelLevel = "file", pool: Pool = "row_stats") -> Embeddings:
        """Vectors of recordings of any length.

        Args:
            recordings: as of `LoadedClassifier.predict`.
            level: file: a row for each recording, the average over its windows, weighted by length; window: a row for
                each window.
            pool: as `--embed.pool`. row_stats: mean and standard deviation of every frequency row of patches; mean:
                the mean of all patches; cls: the class token.
        """
        require_choice("level", level, ("file", "window"))
        require_choice("pool", pool, ("row_stats", "mean", "cls"))
        sources, model = sources_of(recordings), RecordingEmbedder(self.embedder, pool)
        found = [rows_of(windows, level) for windows in model.each(sources, opened)]
        return embeddings_of(names_of(sources), found, level)


def rows_of(windows: list[Window] | AudioError, level: LabelLevel) -> list[tuple[Any, Any, Any, str | None]]:
    """Rows (start, end, vector or None, error or None) of a recording from its windows, or from its error."""
    if isinstance(windows, AudioError):
        return [(None, None, None, str(windows))]
    if level == "file":
        return [(windows[0][0], windows[-1][1], RecordingEmbedder.average(windows), None)]
    return [(start, end, one, str(SilentError()) if one is None else None) for start, end, one in windows]


def names_of(sources: Sequence[Any]) -> list[str | None]:
    """The paths of recordings; None for others."""
    return [source if isinstance(source, str) else None for source in sources]


def opened(source: Any) -> Any:
    """A source of `WindowedModel.windows`: what is at a path or URL, others as they are."""
    return open_clip(source) if isinstance(source, str) else source


def device_of(device: str | None) -> str:
    """The device given, or a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_classifier(
    source: Path, *, device: str | None = None, storage: Path = STORAGE, tracking_uri: str | None = None
) -> LoadedClassifier:
    """A finished classifier: its folder or URL, models:/<name>@<alias>, runs:/… or hf://OWNER/NAME.

    Args:
        source: what jobs/predict.py takes as `--predict.model`.
        device: torch's name of a device; None: a GPU if there is one.
        storage: the storage whose registry has the models:/ URIs.
        tracking_uri: the MLflow server that has them instead.
    """
    folder = open_artifact(str(source), places(storage, tracking_uri))
    return LoadedClassifier(Predictor(folder, device_of(device)))


def load_encoder(
    source: Path,
    *,
    layers: Sequence[int] = (),
    device: str | None = None,
    storage: Path = STORAGE,
    tracking_uri: str | None = None,
) -> LoadedEncoder:
    """The encoder of a pre-training or of a classifier; arguments as of `load_classifier`.

    Args:
        layers: blocks, counted from 1, whose outputs are averaged; empty: the last.
    """
    folder = open_artifact(str(source), places(storage, tracking_uri))
    return LoadedEncoder(read_embedder(folder, layers, device_of(device)))


def create_model(
    size: str | None = None,
    *,
    pretrained: Path | None = None,
    num_classes: int | None = None,
    front_end: FrontEnd | None = None,
    model: Mapping[str, Any] | None = None,
    finetune: Mapping[str, Any] | None = None,
    storage: Path = STORAGE,
    tracking_uri: str | None = None,
) -> nn.Module:
    """A torch module of log-mels (B, T, F): a masked autoencoder or, with `num_classes`, a classifier of logits.

    Args:
        size: one of `raymae.config.MODEL_SIZES`; None: the sizes and front end of `pretrained`, a folder of raymae's.
        pretrained: weights of the encoder: whatever `--pretrain.init-from` takes, Audio-MAE's and timm's files, too.
        num_classes: classes of the head.
        front_end: its name in `raymae.config.FRONT_ENDS` or its settings; None: that of `pretrained`, or the paper's.
        model: further settings of the section model, such as {"patch_size": (16, 8)}.
        finetune: settings of the section finetune, such as {"pool": "cls"}, for a classifier.
        storage, tracking_uri: as of `load_classifier`.

    Raises:
        ValueError: an unknown size or setting, or weights that don't fit; names what was found and what was expected.
    """
    if finetune is not None and num_classes is None:
        raise ValueError("finetune has no effect without num_classes: settings of a classifier's pooling and head")
    start = sized(size, pretrained, places(storage, tracking_uri))
    if front_end is not None:
        start = replace(start, audio=front_end_of(front_end))
    values = leaves(plain({"model": model or {}, "finetune": finetune or {}}))
    values = {path: typed(Config, path, value) for path, value in values.items() if value != {}}
    section: Literal["pretrain", "finetune"] = "pretrain" if num_classes is None else "finetune"
    config: Config = changed(start, values | ({f"{section}.init_from": str(pretrained)} if pretrained else {}))
    if num_classes is None:
        network: nn.Module = MODELS[config.model.name](config.audio, config.model)
    else:
        network = build_classifier(config.audio, config.model, config.finetune, num_classes)
    if pretrained:
        given = find(config, Folder(config.storage), section)[section]
        state = checked(given, section, config)
        if isinstance(network, AudioClassifier):
            load_encoder_weights(network, state)
        else:
            load_pretrained(network, state)
    return network


def sized(size: str | None, pretrained: Path | None, config: Config) -> Config:
    """Settings with the sizes of a name or, without one, with sizes and front end of a folder of raymae's."""
    if size is not None:
        if size not in MODEL_SIZES:
            raise ValueError(f"unknown size {size!r}{nearest(size, MODEL_SIZES)}; valid: {', '.join(MODEL_SIZES)}")
        return replace(config, model=with_size(ModelConfig(), size))  # type: ignore[arg-type]
    if pretrained is None or str(pretrained).endswith(FILES):
        raise ValueError(f"create_model needs a size ({', '.join(MODEL_SIZES)}), or pretrained, a folder that names it")
    _, card = read_card(open_artifact(str(pretrained), config))
    model = from_dict(ModelConfig, card["model"])
    depth = card.get("finetune", {}).get("layer") or model.depth
    return replace(config, audio=from_dict(AudioConfig, card["audio"]), model=replace(model, depth=depth))
