"""Find, check and copy the weights that training starts from (`init_from`).

Only the driver does this. The copy, which every worker can read, is `<storage>/artifacts/weights/<key>/`:
`model.safetensors` in raymae's names, and a `done.json` with their source; the key is a digest of their content.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from raymae.config import FRONT_ENDS, RANDOM, AudioConfig, Config, from_dict, redact
from raymae.config.stages import Target, requires
from raymae.pipeline.plan.plan import Given
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder
from raymae.storage.found import what_is_there
from raymae.storage.hub import is_on_hub
from raymae.tracking.model_uri import CARDS, EXPORTED, WEIGHTS, open_artifact

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

VERSION = 2
"""Part of every key; a change of how weights are read, or their positions are used, raises it."""

FILES = (".safetensors", ".pth", ".pt", ".bin")
"""Files with a state dict; all but the first are read by torch.load, with weights alone."""


@dataclass(frozen=True)
class Found(Given):
    """Given weights and their source."""

    setting: str
    """The setting that names them, with its value, for messages."""
    folder: Folder
    file: str
    """The file in it that holds the weights."""
    card: str | None
    """The file beside it that describes them; None for a bare state dict."""


def find(config: Config, storage: Folder, target: Target) -> dict[str, Given]:
    """The weights of every section that sets `init_from`, by section; reads them once, without torch, for their key.

    Those of `evaluate.supervised_from` are the section "supervised".

    Raises:
        ValueError: a path, URL or registry URI that holds no weights.
    """
    sections = [section for section in ("pretrain", "finetune") if requires(target, section)]
    sources = {section: (f"{section}.init_from", getattr(config, section).init_from) for section in sections}
    if requires(target, "evaluate"):
        sources["supervised"] = ("evaluate.supervised_from", config.evaluate.supervised_from)
    return {
        section: _find(setting, source, config, storage)
        for section, (setting, source) in sources.items()
        if source and source != RANDOM
    }


def _find(setting: str, source: str, config: Config, storage: Folder) -> Found:
    setting = f"{setting} {redact(source)}"
    try:
        folder = open_artifact(source, config)
    except ValueError as error:
        raise ValueError(f"{setting}: {redact(str(error))}") from None
    try:
        if source.endswith(FILES):
            parent, _, file = folder.url.rpartition("/")
            folder = Folder(parent)
            card = EXPORTED if folder.exists(EXPORTED) and folder.read_json(EXPORTED)["vit"]["file"] == file else None
        else:
            file, card = WEIGHTS, next((name for name in CARDS if folder.exists(name)), None)
            bare = card is None and is_on_hub(source)  # the hub's models are commonly a state dict of this name
            if not folder.exists(WEIGHTS) or (card is None and not bare):
                raise ValueError(
                    f"neither a pre-training ({CARDS[0]}) nor a classifier ({CARDS[1]}) with its {WEIGHTS}; "
                    f"a bare state dict is named by its file ({', '.join(FILES)}){what_is_there(folder)}"
                )
        with folder.open(file) as content:
            content_hash = hashlib.file_digest(cast(io.BytesIO, content), "sha256").hexdigest()
        key = digest([VERSION, content_hash, card and folder.read_json(card), _rows(config)])
    except FileNotFoundError:
        raise ValueError(f"{setting} can't be read: there is no such file") from None
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"{setting}: {redact(str(error))}") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{setting}: {EXPORTED} beside it was not written by jobs/export.py: no {error}") from None
    return Found(key, storage / f"artifacts/weights/{key}", setting, folder, file, card)


def _rows(config: Config) -> int:
    """Frequency rows of patches: they turn a flat list of positions into a grid."""
    return -(-config.audio.n_mels // config.model.patch_size[1])


def bring(given: Given, section: str, config: Config, *, write: bool) -> None:
    """Read and check the weights (`checked`) and, with `write`, copy them."""
    assert isinstance(given, Found)
    from safetensors.torch import save

    state = checked(given, section, config)
    if write and not given.artifact.is_done():
        given.artifact.write_bytes(WEIGHTS, save(state))
        source = redact(f"{given.folder.url}/{given.file}")
        given.artifact.finish({"source": source, "setting": given.setting, "tensors": len(state)})


def checked(given: Given, section: str, config: Config) -> dict[str, Tensor]:
    """The weights in raymae's names, from which the section's model can start.

    Raises:
        ValueError: the model of these settings can't start from them; names what was found and what was expected.
    """
    assert isinstance(given, Found)
    from raymae.models.weights_file import finite

    try:
        state, card = read(given, _rows(config))
        finite(state)
        check(state, card, section, config)
    except (ValueError, OSError) as error:
        raise ValueError(f"{given.setting}: {redact(str(error))}") from None
    except (KeyError, TypeError, AttributeError) as error:
        if given.card is None:
            raise
        raise ValueError(f"{given.setting}: {given.card} is damaged: {type(error).__name__} {error}") from None
    return state


def read(found: Found, n_rows: int) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights in raymae's names, and the JSON that describes them (None for a bare state dict)."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from raymae.models.timm_weights import own_names

    content = found.folder.read_bytes(found.file)
    try:
        state = load(content) if found.file.endswith(".safetensors") else load_torch(content)
    except SafetensorError as error:
        raise ValueError(f"{found.file} is damaged: {error}") from None
    card = found.folder.read_json(found.card) if found.card else None
    if card is None:
        if any(name.startswith("encoder.") for name in state):
            raise ValueError(f"{found.file} has raymae's own names: give its folder")
        return own_names(state, n_rows), None
    if found.card == EXPORTED:
        vit = card["vit"]["arguments"]
        state = own_names(state, vit["img_size"][1] // vit["patch_size"][1])
        return state, {"audio": card["audio"], "model": {"num_heads": vit["num_heads"]}}
    if card.get("cnn"):
        raise ValueError(f"a CNN ({card['cnn']}), which has no encoder")
    if found.card == "classifier.json" and card["finetune"]["pool"] != "mean":  # its norm is not one over mean patches
        state = {name: value for name, value in state.items() if not name.startswith("norm.")}
    return state, card


def load_torch(content: bytes) -> dict[str, Tensor]:
    """The state dict of a file by torch.save, also below "model" as in Audio-MAE's; nothing in it is executed.

    Its checkpoints carry their command line as an `argparse.Namespace`, a plain holder of values.
    """
    import torch

    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            for entry in zipfile.ZipFile(io.BytesIO(content)).infolist():
                if entry.file_size > entry.compress_size:
                    raise ValueError(f"{entry.filename} in it is compressed, and torch.save compresses nothing")
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch fail with exceptions of their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"torch.load(weights_only=True) can't read it: {reason}") from None
    for inner in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError('no state dict: expected tensors by name, at the top or below "model"')
    for name, value in found.items():
        if value.is_meta or value.layout != torch.strided or value.nbytes > len(content):
            raise ValueError(f"{name} {tuple(value.shape)} is more than the file's {len(content)} bytes can hold")
    return dict(found)


def check(state: dict[str, Tensor], card: dict[str, Any] | None, section: str, config: Config) -> None:
    """ValueError where the section's model can't start from these weights; a warning where it can but should not."""
    import torch

    from raymae.models import MODELS, build_classifier
    from raymae.models.timm_weights import AUDIO_MAE_GRID, blocks_of, encoder_weights, pretrained_weights

    with torch.device("meta"):
        if section == "pretrain":
            taken = pretrained_weights(MODELS[config.model.name](config.audio, config.model), state)
        else:
            taken = encoder_weights(build_classifier(config.audio, config.model, config.finetune, num_classes=2), state)
    used, held = blocks_of(taken, "encoder."), blocks_of(state, "encoder.")
    if used < held:
        log.info("the first %d of %d blocks are used", used, held)
    table = state.get("encoder.pos_embed")
    if card is not None:
        check_heads(int(card["model"]["num_heads"]), config)
        compare_front_ends(from_dict(AudioConfig, card["audio"]), config.audio)
    elif table is not None and tuple(table.shape[:2]) == AUDIO_MAE_GRID:
        compare_front_ends(FRONT_ENDS["audiomae"], config.audio)
    else:
        log.warning("the file doesn't name the front end of its weights: audio.* has to be the same")
    if card is None and config.model.embed_dim != 64 * config.model.num_heads:  # the heads of ViT-S, B and L have 64
        log.warning(
            "model.num_heads = %d has to be that of the weights, whose shapes don't show it (timm's and Audio-MAE's "
            "ViTs have one head per 64 of model.embed_dim = %d)",
            *(config.model.num_heads, config.model.embed_dim),
        )


def check_heads(found: int, config: Config) -> None:
    """ValueError for another number of attention heads, which no shape shows."""
    if found != config.model.num_heads:
        raise ValueError(f"model.num_heads: found {found}, expected {config.model.num_heads}")


def compare_front_ends(theirs: AudioConfig, ours: AudioConfig) -> None:
    """Warn of the front-end settings that differ from those that the weights were trained with."""
    names = [name for name, value in theirs.front_end().items() if getattr(ours, name) != value]
    if names:
        different = ", ".join(
            f"audio.{name} = {getattr(ours, name)} (theirs {getattr(theirs, name)})" for name in names
        )
        log.warning("the weights were trained on another front end: %s", different)
