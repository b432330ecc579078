"""Open a model by its folder, URL, or MLflow URI."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from raymae.config import Config, redact
from raymae.storage.folder import Folder, digest, open_storage

CARDS = ("model.json", "classifier.json")
"""What describes a pre-training folder and a classifier folder."""

WEIGHTS, EXPORTED = "model.safetensors", "export.json"

REGISTERED = re.compile("(models|runs):/")
"""How a URI of MLflow begins."""


def open_artifact(source: str, config: Config) -> Folder:
    """The folder that a path, a URL or a registry URI (models:/, runs:/) names; only the last is looked at."""
    if REGISTERED.match(source):
        from raymae.tracking.tracker import Tracker

        return Folder(Tracker(config.tracking, open_storage(config.storage)).download_classifier(source))
    return Folder(source if "://" in source else str(Path(source).expanduser().resolve()))


def open_shared(source: str, config: Config) -> Folder:
    """The same; what MLflow has put on the driver's own disk is copied to the storage, where all nodes see it."""
    folder = open_artifact(source, config)
    return share(folder, open_storage(config.storage)) if REGISTERED.match(source) else folder


def share(folder: Folder, storage: Folder) -> Folder:
    """A copy in the storage, named by its content, of a model's card and weights; ValueError where there is no card."""
    card = next((name for name in CARDS if folder.exists(name)), None)
    if card is None:
        raise ValueError(f"{redact(folder.url)} holds no model: it has neither {' nor '.join(CARDS)}")
    contents = {name: folder.read_bytes(name) for name in (card, WEIGHTS)}
    key = digest({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    target = storage / f"artifacts/models/{key}"
    if not target.is_done():
        for name, content in contents.items():
            target.write_bytes(name, content)
        target.finish({})
    return target
