"""Models of the registry by wrong names: what there is, and the nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymae.config import Config
from raymae.storage.folder import Folder
from raymae.tracking.model_uri import open_artifact
from raymae.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A storage whose registry has a model of two versions, one of them the candidate."""
    config = Config(storage=str(tmp_path_factory.mktemp("storage")))
    tracker = Tracker(config.tracking, Folder(config.storage))
    tracker.client.create_registered_model("scenes")
    for _ in range(2):
        tracker.client.create_model_version("scenes", config.storage)
    tracker.client.set_registered_model_alias("scenes", "candidate", "2")
    return config


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/scene@candidate", r"has no model scene \(did you mean scenes\?\); it has scenes$"),
        ("models:/scenes@candidat", r"no scenes@candidat \(did you mean candidate\?\); its aliases: candidate$"),
        ("models:/scenes/99", r"has no version 99 of scenes; it has 1, 2$"),
    ],
)
def test_a_wrong_name_is_answered_by_what_there_is(config: Config, uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        open_artifact(uri, config)
    assert config.storage in str(error.value)


def test_a_storage_without_a_registry_stays_without(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no registry \(mlflow\.db\): name the storage of the run"):
        open_artifact("models:/scenes@candidate", replace(config, storage=str(tmp_path / "other")))
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_not_there_is_not_made(config: Config, tmp_path: Path) -> None:
    tracking = replace(config.tracking, uri=f"sqlite:///{tmp_path}/mlflow.bd")
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ValueError, match=r"no file .*/mlflow\.bd; .*\(did you mean mlflow\.db\?\)"):
        open_artifact("models:/scenes@candidate", replace(config, tracking=tracking))
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
