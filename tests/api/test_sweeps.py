"""Sweeps from Python, with records in place of trials; no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raymae
from raymae.api.settings import settings_of
from raymae.api.sweeps import SweepRun, space_texts
from raymae.cluster import connect
from raymae.config import Config, DataConfig, EvaluateConfig
from raymae.config.recipes import RECIPES
from raymae.sweep.results import Record, write_record
from raymae.sweep.run import Sweep
from raymae.sweep.space import parse_axis
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY

SPACE = {"model.mask_ratio": [0.5, 0.7], "model.patch_size": [(8, 8), (8, 4)]}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRun:
    """A sweep of four trials whose scores are made up; the third one failed."""
    table = write_table(tmp_path / "rec", write_clips(tmp_path / "rec", 60))

    def tiny() -> Config:
        data = DataConfig(dataset="table")
        return replace(TINY, data=data, evaluate=EvaluateConfig(baselines=(), probe_clips=0), unlabelled=())

    def search(sweep: Sweep) -> None:
        for number, point in enumerate(sweep.points or ()):
            score = {"status": "failed", "error": "OSError: gone"} if number == 2 else {"score": 0.5 + number / 10}
            values: dict[str, Any] = {"status": "finished", "flops": 1e12} | score
            write_record(sweep.folder, Record(key=point.key, changes=point.values, **values))

    monkeypatch.setitem(RECIPES, "small", tiny)
    monkeypatch.setattr(Sweep, "search", search)
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    return raymae.run_sweep("small", table, storage=tmp_path / "runs", space=SPACE, finetune={"epochs": 3})


def test_a_sweep_gives_its_trials_as_a_table_and_its_best_settings(found: SweepRun, tmp_path: Path) -> None:
    frame = found.to_frame()
    assert frame["score"].tolist()[:3] == [0.8, 0.6, 0.5]
    assert frame["status"].tolist() == ["finished"] * 3 + ["failed"]
    assert {"model.mask_ratio", "model.patch_size", "seconds", "flops", "interval", "p_holm"} <= set(frame)
    assert found.best == {"model.mask_ratio": 0.7, "model.patch_size": (8, 4)}
    assert found.result_grid is None
    assert (Path(found.folder) / "sweep.html").is_file()
    assert "model.mask_ratio" in found._repr_html_()
    config = settings_of("small", None, found.settings)
    assert (config.model.mask_ratio, config.model.patch_size, config.finetune.epochs) == (0.7, (8, 4), 3)
    assert config.storage == str(tmp_path / "runs")
    assert config.data.tables


def test_a_space_is_what_the_command_line_takes() -> None:
    texts = ("model.mask_ratio=0.5,0.7", "model.patch_size=8+8,8+4")
    assert space_texts(SPACE) == space_texts(texts) == texts
    assert space_texts("seed=1,2") == ("seed=1,2",)
    axis = parse_axis(space_texts({"finetune.lr": "log:1e-4..1e-2"})[0])
    assert (axis.low, axis.high, axis.log) == (1e-4, 1e-2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": ["seed=1,2"], "sweep": {"space": ["seed=1,2"]}}, "space is given twice"),
        ({"space": {"model.mask_rato": [1, 2]}}, "did you mean model.mask_ratio"),
        ({"sweep": {"trails": 3}}, "did you mean sweep.trials"),
        ({"dry_run": True}, "dry_run is an option of the command lines"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        raymae.run_sweep("small", "a.csv", storage=tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()
