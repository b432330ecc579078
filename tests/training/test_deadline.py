"""A job whose time is up stops at a checkpoint, reports it, and changes no result."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from raymae.cli import main as cli
from raymae.config import Config, DataConfig
from raymae.features.store import FeatureStore
from raymae.pipeline import repeats
from raymae.pipeline import run as pipeline
from raymae.pipeline.job import run_job
from raymae.pipeline.plan.plan import Plan
from raymae.storage.commits import latest_step
from raymae.storage.folder import Folder
from raymae.training.guards.deadline import EXIT_STATUS, FOREVER, MARGIN_SECONDS, Deadline, TimeIsUpError
from raymae.training.run_stage import run_stage
from raymae.training.worker import BareSession
from tests.support.audio_files import write_clips, write_table
from tests.support.jobs import job_of
from tests.support.training import TINY, make_spec, train

OVER = Deadline(1.0, 0.0)
"""Deadline of a job that started long ago: every run stops after its first step."""


@given(hours=st.floats(1e-4, 1e4), started=st.integers(0, 10**10))
def test_work_ends_before_the_slot_does(hours: float, started: float) -> None:
    left = started + 3600 * hours - Deadline(hours, started).end
    assert 0 <= left <= MARGIN_SECONDS + 1e-4
    assert left <= 0.021 * 3600 * hours + 1e-4


def test_without_hours_there_is_no_end() -> None:
    assert not FOREVER.is_over()
    FOREVER.check("anywhere")
    assert not Deadline(1.0, time.time()).is_over()
    with pytest.raises(TimeIsUpError, match=r"--max-hours 1.0 are over at step 3; the same command resumes from there"):
        OVER.check("at step 3")
    with pytest.raises(ValueError, match="max_hours = 0 must be positive"):
        Config(max_hours=0)


def test_stops_at_a_checkpoint_and_changes_no_weights(store: FeatureStore, tmp_path: Path) -> None:
    short = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1.5))
    whole = train(make_spec(store, tmp_path / "whole", config=short))
    spec = make_spec(store, tmp_path / "parts", config=short)
    for step in range(1, spec.order().steps):
        assert not run_stage(spec, BareSession(store, spec.artifact), OVER)
        assert latest_step(spec.artifact) == step
        assert not spec.artifact.is_done()
    assert run_stage(spec, BareSession(store, spec.artifact), OVER), (
        "the last step ends the stage, although the time is up"
    )
    last = load(spec.artifact.read_bytes("model.safetensors"))
    assert all((value == last[name]).all() for name, value in whole.items())


def test_max_hours_are_not_part_of_a_key(tmp_path: Path) -> None:
    table = write_clips(tmp_path, 20)
    plans = [Plan(replace(TINY, max_hours=hours), table, Folder(str(tmp_path)), "finetune") for hours in (None, 2.0)]
    assert plans[0].nodes == plans[1].nodes


def test_the_job_reports_it_and_has_its_own_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise OVER.error("at step 3 of pretrain")

    monkeypatch.setattr(repeats, "run_plan", stop)
    with pytest.raises(SystemExit) as end:
        cli.start(job_of(partial(run_job, "pretrain")), ["--storage", "/tmp", "--max-hours", "1"])
    assert end.value.code == EXIT_STATUS == 75
    assert capsys.readouterr().err == (
        "--max-hours 1.0 are over at step 3 of pretrain; the same command resumes from there\n"
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_pipeline_resumes_after_its_hours(tmp_path: Path, ray_cluster: None) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 40))
    data = DataConfig(dataset="table", tables=(str(table),), shard_mb=0.1)
    config = replace(TINY, recipe="tiny", storage=str(tmp_path / "storage"), data=data)
    storage = Folder(config.storage)
    with pytest.raises(TimeIsUpError, match="before prepare"):
        pipeline.run_plan(replace(config, max_hours=1e-9), "pretrain", storage)
    pipeline.run_plan(config, "prepare", storage)
    assert pipeline.run_plan(config, "pretrain", storage)["stages"]["prepare"]["reused"]
