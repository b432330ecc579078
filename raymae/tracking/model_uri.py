"""Open a model by its folder, URL, MLflow URI or address on Hugging Face's hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from raymae.config import Config, redact
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder, open_storage
from raymae.storage.found import beside, what_is_there
from raymae.storage.hub import download, is_on_hub
from raymae.tracking.uri import REGISTRY, sqlite_file

CARDS = ("model.json", "classifier.json")
"""The description files of a pre-training folder and a classifier folder."""

WEIGHTS, EXPORTED = "model.safetensors", "export.json"

REGISTERED = re.compile("(models|runs):/")
"""The prefix of an MLflow URI."""


def open_artifact(source: str, config: Config) -> Folder:
    """The folder of a path, URL, MLflow URI (models:/, runs:/) or hf://; the last two are checked and downloaded."""
    if is_on_hub(source):
        return Folder(download(source, (*CARDS, EXPORTED, WEIGHTS)))
    if REGISTERED.match(source):
        check_registry(config)
        from raymae.tracking.tracker import Tracker

        return Folder(Tracker(config.tracking, open_storage(config.storage)).download_classifier(source))
    return Folder(source if "://" in source else str(Path(source).expanduser().resolve()))


def check_registry(config: Config) -> None:
    """ValueError where there is no registry on local disk: MLflow would make an empty one there."""
    url = config.storage if "://" in config.storage else str(Path(config.storage).expanduser().resolve())
    storage, uri = Folder(url), config.tracking.uri
    if uri is None and storage.is_local and not storage.exists(REGISTRY):
        raise ValueError(
            f"--storage {redact(url)} has no registry ({REGISTRY}): name the storage of the run that registered the "
            f"model, or --tracking.uri{beside(url, REGISTRY)}"
        )
    file = sqlite_file(uri or "")
    if file and not file.exists():
        raise ValueError(
            f"--tracking.uri {redact(str(uri))}: there is no file {file.resolve()}"
            f"{what_is_there(Folder(str(file.resolve()))).replace('such folder', 'registry')}"
        )


def open_shared(source: str, config: Config) -> Folder:
    """As `open_artifact`, but on a storage that all nodes can read: downloads are on the driver's disk."""
    folder = open_artifact(source, config)
    is_download = REGISTERED.match(source) or is_on_hub(source)
    return share(folder, open_storage(config.storage)) if is_download else folder


def share(folder: Folder, storage: Folder) -> Folder:
    """Copy a model's description and weights to the storage, named by content; ValueError without a description."""
    card = next((name for name in CARDS if folder.exists(name)), None)
    if card is None:
        raise ValueError(
            f"{redact(folder.url)} holds no model: it has neither {' nor '.join(CARDS)}{what_is_there(folder)}"
        )
    contents = {name: folder.read_checked(name) for name in (card, WEIGHTS)}
    key = digest({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    target = storage / f"artifacts/models/{key}"
    if not target.is_done():
        for name, content in contents.items():
            target.write_bytes(name, content)
        target.finish({})
    return target
