"""The tracking URI and the command that opens MLflow."""

from __future__ import annotations

from raymae.config import TrackingConfig, redact
from raymae.storage.folder import Folder

REGISTRY = "mlflow.db"
"""MLflow's SQLite file in a local storage."""


def tracking_uri(config: TrackingConfig, storage: Folder) -> str:
    """The configured URI, or a SQLite file below a local storage; ValueError where there is neither."""
    if config.uri:
        return config.uri
    if not storage.is_local:
        raise ValueError("a storage at a URL needs --tracking.uri: the default, a SQLite file, lies on local disk")
    return f"sqlite:///{storage.path(REGISTRY)}"


def ui_command(config: TrackingConfig, storage: Folder) -> str:
    """The command that opens MLflow's pages."""
    return f"mlflow ui --backend-store-uri '{redact(tracking_uri(config, storage))}' --host 127.0.0.1"
