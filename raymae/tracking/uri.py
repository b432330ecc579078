"""MLflow's tracking URI and the command that opens its user interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

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
    # a SQLAlchemy address: "?" would begin its options, "%" a character's number
    return f"sqlite:///{storage.path(REGISTRY).replace('%', '%25').replace('?', '%3F')}"


def ui_command(config: TrackingConfig, storage: Folder) -> str:
    """The command that opens MLflow's user interface."""
    return f"mlflow ui --backend-store-uri '{redact(tracking_uri(config, storage))}' --host 127.0.0.1"


def experiment_page(config: TrackingConfig, experiment_id: str | None) -> str:
    """The address of an experiment in MLflow's user interface, as training runs.

    MLflow 3 shows agents and traces unless the address, or an earlier choice in the browser, says otherwise: no tag of
    the experiment does.
    """
    server = redact(config.uri).rstrip("/") if config.uri and config.uri.startswith("http") else "http://127.0.0.1:5000"
    place = f"/{experiment_id}" if experiment_id else ""
    return f"{server}/#/experiments{place}?workflowType=machine_learning"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite URI, or None."""
    name = uri.removeprefix("sqlite:///")
    return Path(unquote(name.partition("?")[0])) if uri.startswith("sqlite:///") and name else None


@contextmanager
def one_at_a_time(uri: str, make: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time `make` a new SQLite file at a URI: MLflow's migrations fail if two do.

    It is made under another name: one that was left half made would be refused for ever. ValueError if the file can't
    be written.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"{file} can't be written")
    with FileLock(f"{file}.lock"):
        if not file.exists() and "?" not in uri:
            half = file.with_name(f"{file.name}.{os.getpid()}")
            half.unlink(missing_ok=True)
            make(f"{uri}.{os.getpid()}")
            half.rename(file)
        yield
