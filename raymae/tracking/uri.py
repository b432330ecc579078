"""MLflow's tracking URI and the command that opens its user interface."""

from __future__ import annotations

from raymae.config import TrackingConfig, redact
from raymae.storage.folder import Folder

REGISTRY = "mlflow.db"
"""MLflow's SQLite file in a local storage."""


def tracking_uri(config: TrackingConfig, storage: Folder) -> str:
    """The configured URI, or a SQLite file in a local storage; ValueError if there is neither."""
    if config.uri:
        return config.uri
    if not storage.is_local:
        raise ValueError("a storage at a URL needs --tracking.uri: the default is a SQLite file on local disk")
    return f"sqlite:///{storage.path(REGISTRY)}"


def ui_command(config: TrackingConfig, storage: Folder) -> str:
    """The command that opens MLflow's user interface."""
    return f"mlflow ui --backend-store-uri '{redact(tracking_uri(config, storage))}' --host 127.0.0.1"
