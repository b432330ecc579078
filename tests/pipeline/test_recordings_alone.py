"""Recordings without any table: a folder or a tar is enough for pre-training, and says what else it would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymae.config import Config, DataConfig
from raymae.pipeline.plan.make import make_plan
from raymae.storage.folder import open_storage
from tests.support.audio_files import encoded, tar
from tests.support.training import TINY


@pytest.fixture(params=["folder", "tar"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """The settings of a run that names recordings and nothing else."""
    sounds = {f"{'walk/' if number % 2 else ''}{number}.wav": encoded(number) for number in range(6)}
    place = tmp_path / ("recordings.tar" if request.param == "tar" else "recordings")
    if request.param == "tar":
        place.write_bytes(tar(sounds))
    for name, content in sounds.items() if request.param == "folder" else ():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return replace(TINY, data=DataConfig(dataset="table", tables=(str(place),)))


def test_recordings_alone_are_planned_for_pretraining(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(config, "pretrain", open_storage(str(tmp_path / "storage")))
    assert list(plan.nodes) == ["prepare", "pretrain"]
    assert plan.clips["split"].to_pylist() == ["train"] * 6
    assert plan.clips["scene_label"].null_count == 6
    assert "without labels: its 6 recordings are for pre-training" in caplog.text


def test_a_classifier_needs_more(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no clip of split train has a scene_label.*jobs/pretrain.py needs no labels"):
        make_plan(config, "finetune", open_storage(str(tmp_path / "storage")))


def test_recordings_join_a_table(config: Config, tmp_path: Path) -> None:
    (tmp_path / "own.wav").write_bytes(encoded(9))
    (tmp_path / "own.csv").write_text("filename,scene_label\nown.wav,bus\n")
    tables = (str(tmp_path / "own.csv"), *config.data.tables)
    plan = make_plan(
        replace(config, data=replace(config.data, tables=tables)), "pretrain", open_storage(str(tmp_path / "storage"))
    )
    assert plan.clips["scene_label"].to_pylist() == ["bus"] + [None] * 6
    assert set(plan.clips["split"].to_pylist()) == {"train"}
