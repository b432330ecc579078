"""Mistakes that would cost a run: each ends the job in one line, before Ray starts and before anything is computed."""

from __future__ import annotations

import csv
import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymae.cli.arguments import parse
from raymae.cli.options import options_of
from raymae.cluster import connect
from raymae.cluster.resources import room
from raymae.config import Config, FinetuneConfig, PretrainConfig, TrackingConfig, changed
from raymae.config.values import numbers
from tests.support.audio_files import write_tone
from tests.support.paths import ROOT

Run = Callable[..., tuple[Any, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Runs a job on two CPUs without a GPU, which has to end before Ray; returns exit status and message."""
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(room.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(room, "starts_here", lambda address: address is None)
    monkeypatch.setattr(room, "joined", lambda: False)
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("raymae").level

    def call(job: str, *arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", [job, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        printed = capsys.readouterr()
        assert not (tmp_path / "st" / "artifacts").exists()
        return (1, end.value.code) if isinstance(end.value.code, str) else (end.value.code, printed.err)

    yield call
    logging.getLogger("raymae").setLevel(level)


def write_table(folder: Path, splits: str = "train train val test", classes: int = 2) -> str:
    """A table with so many classes in every one of some splits."""
    rows = [(f"{split}{place}.wav", "abc"[number], split) for place, split in enumerate(splits.split())
            for number in range(classes)]  # fmt: skip
    rows = [(f"{label}{name}", label, split) for name, label, split in rows]
    for name, _, _ in rows:
        write_tone(folder / name, 440, seconds=0.1)
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("filename", "scene_label", "split"), *rows])
    return "metadata.csv"


@pytest.mark.parametrize(
    ("words", "splits", "classes", "message"),
    [
        ("", "train", 2, "nothing to evaluate on: no clip of a split val or test"),
        ("", "train train val test", 1, "'a' is the only class of the training clips"),
        (
            "--compute.use-gpu True",
            "train test",
            2,
            "--compute.use-gpu is set and the cluster has no GPU: Ray would start on",
        ),
        ("--compute.num-workers 3", "train test", 2, "--compute.num-workers 3 needs more CPUs than the cluster's 2"),
    ],
)
def test_what_the_clips_and_the_machine_lack(
    run: Run, tmp_path: Path, words: str, splits: str, classes: int, message: str
) -> None:
    table = write_table(tmp_path, splits, classes)
    status, text = run("pipeline", "small", "--storage", "st", "--data.tables", table, *words.split())
    assert (status, text.count("\n")) == (1, 0)
    assert message in text


def test_a_hint_shows_how_to_hold_clips_out(run: Run, tmp_path: Path) -> None:
    table = write_table(tmp_path, "train")
    assert "--data.split.kind session" in run("evaluate", "small", "--storage", "st", "--data.tables", table)[1]


@pytest.mark.parametrize(
    ("splits", "line"),
    [
        ("train test", "split val has no labelled clip: each training keeps its last w"),
        ("train val", "no split test"),
    ],
)
def test_one_held_out_split_is_enough_and_a_line_says_what_follows(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, splits: str, line: str
) -> None:
    with caplog.at_level(logging.WARNING):
        _, text = run(
            "pipeline", "small", "--storage", "st", "--data.tables", write_table(tmp_path, splits),
            "--compute.num-workers", "3",
        )  # fmt: skip
    assert "num-workers" in text  # it came further than the splits
    assert [one.message for one in caplog.records if line in one.message]


def test_a_machine_says_nothing_about_a_cluster(run: Run) -> None:
    room.check_here(changed(Config(), {"compute.use_gpu": True, "compute.address": "10.0.0.1:6379"}).compute)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pretrain.lr nan", "--pretrain.lr nan must be a finite number"),
        ("--finetune.augment.mixup_alpha=-inf", "--finetune.augment.mixup-alpha -inf must be a finite number"),
        ("--seed -1", "--seed -1 must not be negative"),
        ("--data.tables a.csv", "--data.tables needs a recipe, which is missing: name one"),
        ("--tracking.uri htp://host", "--tracking.uri htp://host can't be one of MLflow's"),
        ("--pretrain.epoch 3", "--pretrain.epoch (did you mean --pretrain.epochs?)"),
        ("--data-tables a.csv", "--data-tables (did you mean --data.tables?)"),
        ("smal", "unknown recipe 'smal' (did you mean small?)"),
    ],
)
def test_a_wrong_command_line(run: Run, words: str, message: str) -> None:
    status, text = run("pipeline", *words.split())
    assert status == 2
    assert message in " ".join(text.replace("│", " ").split())


def test_no_number_of_the_configuration_may_be_nan_or_infinite() -> None:
    """Also of the fields that are None by default, and of those that a section checks itself."""
    paths = {path for path, _ in numbers(Config())}
    paths |= {one.path for one in options_of(Config()) if one.hint == (float | None)}
    assert len(paths) > 60
    for path in paths:
        several = isinstance(getattr_path(Config(), path), tuple)
        for wrong in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="|".join(path.split(".")[-2:])):
                changed(Config(), {path: (wrong, wrong) if several else wrong})


def getattr_path(section: Any, path: str) -> Any:
    for name in path.split("."):
        section = getattr(section, name)
    return section


def test_the_recipes_that_fit_tables_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--data.tables", "a.csv"])
    text = capsys.readouterr().err
    assert "small" in text
    assert "paper" not in text
    assert parse(["--data.tables", "a.csv", "--data.dataset", "table"]).data.tables == ("a.csv",)


@pytest.mark.parametrize(
    "uri",
    ["http://h:5000", "sqlite:///a.db", "postgresql+psycopg2://u:p@h/db", "file:///a", "./a", "databricks", None],
)
def test_uris_of_mlflow_are_accepted(uri: str | None) -> None:
    assert TrackingConfig(uri=uri).uri == uri


def test_an_unknown_uri_names_the_nearest_without_its_password() -> None:
    with pytest.raises(ValueError, match=r"begin with http:.*\(did you mean http\?\)") as error:
        TrackingConfig(uri="htp://me:hunter2@host")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("file", "--storage {here}/file can't be written: {here}/file is a file"),
        ("file/below", "--storage {here}/file/below can't be written: {here}/file is a file"),
        ("/proc/runs", "--storage /proc/runs can't be written: the system refuses to write in /proc ("),
    ],
)
def test_a_storage_that_cannot_be_written(run: Run, tmp_path: Path, storage: str, message: str) -> None:
    (tmp_path / "file").write_text("x")
    status, text = run("pipeline", "--storage", storage)
    assert (status, text.count("\n")) == (1, 0)
    assert message.format(here=tmp_path) in text


@pytest.mark.parametrize("option", ["--data.tables", "--data.pool-tables"])
def test_an_empty_folder_is_named_so(run: Run, tmp_path: Path, option: str) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    tables = [] if option == "--data.tables" else ["--data.tables", write_table(tmp_path)]
    _, text = run("pipeline", "small", "--storage", "st", *tables, option, "empty")
    assert "below it: the folder is empty" in text


def test_a_long_warm_up_is_scaled_down(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for section in (PretrainConfig, FinetuneConfig):
        assert section(epochs=2, warmup_epochs=1).warmup_share == 0.5
        assert section(epochs=2, warmup_epochs=2).warmup_share == section(epochs=2, warmup_epochs=9).warmup_share == 0.1


def test_the_plan_says_that_a_warm_up_was_scaled(capsys: pytest.CaptureFixture[str]) -> None:
    from raymae.pipeline.console import head_lines, warmup_lines

    assert head_lines({"finetune": FinetuneConfig()}) == []
    assert len(head_lines({"finetune": FinetuneConfig(epochs=4, head_epochs=10)})) == 1
    lines = warmup_lines({"pretrain": PretrainConfig(epochs=2, warmup_epochs=3), "finetune": FinetuneConfig()})
    assert lines == [
        "pretrain: warmup_epochs = 3 don't fit into epochs = 2, so that the warm-up takes a tenth of them, 0.2"
    ]
