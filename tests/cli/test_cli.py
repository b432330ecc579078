"""The command line of every job: what it accepts, and its messages for mistakes, which come before any work."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.cli.arguments import parse
from raymae.config import Config
from raymae.config.recipes import RECIPES
from raymae.pipeline.dry_run import trial_steps
from tests.support.paths import ROOT
from tests.support.tables import ROWS, write_table

Run = Callable[..., tuple[Any, str]]


def option_values(section: Any, path: str = "--") -> Iterator[tuple[str, Any]]:
    for item in fields(section):
        value, name = getattr(section, item.name), item.name.replace("_", "-")
        if is_dataclass(value):
            yield from option_values(value, f"{path}{name}.")
        elif name != "recipe":
            yield f"{path}{name}", value


def words_of(option: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    if isinstance(value, bool):
        head, _, name = option.removeprefix("--").rpartition(".")
        return [option if value else f"--{head}.no-{name}" if head else f"--no-{name}"]
    return [option, *map(str, value if isinstance(value, tuple) else [value])]


# What is accepted ----------------------------------------------------------------------------------------------------


def test_without_a_recipe_the_synthetic_one_runs() -> None:
    assert parse([]) == parse(["synthetic"]) == replace(RECIPES["synthetic"](), recipe="synthetic")
    assert parse(["--seed", "4"]) == replace(RECIPES["synthetic"](), recipe="synthetic", seed=4)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_every_recipe_can_be_given(name: str) -> None:
    whole = replace(RECIPES[name](), recipe=name)
    assert type(parse([name])) is Config
    assert parse([name]) == whole
    options = [word for option in option_values(whole) for word in words_of(*option)]
    other = next(recipe for recipe in RECIPES if recipe != name)
    assert replace(parse([other, *options]), recipe=name) == whole


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--data.dataset table --data.tables a.csv b.csv", "data.tables", ("a.csv", "b.csv")),
        ("--data.pool-tables p q --data.pool-weights 1 2.5", "data.pool_weights", (1.0, 2.5)),
        ("--audio.f-max None", "audio.f_max", None),
        ("--audio.f-max 7000", "audio.f_max", 7000.0),
        ("--model.patch-size 8 4", "model.patch_size", (8, 4)),
        ("--model.mask_ratio=0.5", "model.mask_ratio", 0.5),
        ("--pretrain.augment.crop-seconds 1.5", "pretrain.augment.crop_seconds", 1.5),
        ("--compute.use-gpu False", "compute.use_gpu", False),
        ("--evaluate.baselines svm", "evaluate.baselines", ("svm",)),
        ("--pseudo-label.coverage None --pseudo-label.confidence-threshold .8", "pseudo_label.coverage", None),
        ("--audio.norm-mean -3", "audio.norm_mean", -3.0),
    ],
)
def test_a_field_is_set_by_its_path(words: str, path: str, value: Any) -> None:
    found: Any = parse(words.split())
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


# Mistakes on the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pretrain.stpes 3", r"^error: unknown setting --pretrain\.stpes; valid here: .*--pretrain\.epochs,"),
        ("--stpes=3", r"^error: unknown setting --stpes"),
        ("--finetune.augment 3", r"--finetune\.augment is a section, not a setting; --help finetune\.augment"),
        ("--recipe small", "unknown setting --recipe"),
        ("--finetune.centre", r"^error: --finetune\.centre is now called --finetune\.subtract-band-mean$"),
        (
            "--pretrain.augment.colour_p 1",
            r"^error: --pretrain\.augment\.colour-p is now called --pretrain\.augment\.eq",
        ),
        ("papre", "^error: unknown recipe 'papre' \\(did you mean paper\\?\\); valid: synthetic, small"),
        ("--serve.port 0", r"--serve\.port 0 must lie between 1 and 65535"),
        ("--pretrain.epochs many", r"--pretrain\.epochs many: should be a number, FLOAT\. Passes"),
        (
            "--model.decoder lokal",
            r"--model\.decoder lokal: no such choice \(did you mean local\?\); valid: local, global",
        ),
        ("--model.mask-ratio 1", r"^error: --model\.mask-ratio 1\.0 must lie in \[0, 1\)"),
        (
            "--pseudo-label.confidence-threshold 0.8",
            "set one of --pseudo-label.confidence-threshold and --pseudo-label.cov",
        ),
        ("--data.pool-weights 2", r"one positive number for each of the 0 --data\.pool-tables"),
        ("--pretrain.augment.crop-seconds 9", r"crop-seconds 9\.0 must not exceed --audio\.clip-seconds 3\.84"),
    ],
)
def test_a_wrong_setting_is_one_clear_message(run: Run, words: str, message: str) -> None:
    status, text = run("pipeline", *words.split())
    assert status == 2
    assert re.search(message, text), text
    assert "Traceback" not in text


@given(
    name=st.sampled_from([name for name, _ in option_values(Config())]),
    letter=st.sampled_from("qxz"),
    place=st.integers(2, 60),
)
def test_a_misspelt_name_never_counts(name: str, letter: str, place: int) -> None:
    wrong = name[:place] + letter + name[place:]
    with pytest.raises(SystemExit) as end:
        parse([wrong, "1"])
    assert end.value.code == 2


# Bad input, before any work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "rows", "message"),
    [
        ("prepare", [("../x.wav", "", "", "train")], r"metadata\.csv, .*\.\./x\.wav"),
        ("pretrain", [*ROWS, ("d.wav", "", "", "trian")], r"metadata\.csv, column split, row 5: 'trian'.*train, val"),
        ("prepare", [*ROWS, ROWS[0]], r"metadata\.csv, column filename, row 5: 'a\.wav'"),
        ("prepare", [*ROWS, ("./a.wav", "", "", "")], r"metadata row 2 and metadata row 5.*a\.wav"),
        ("prepare", [*ROWS, ("gone.wav", "", "", "")], r"1 of 4 files are missing.*gone\.wav"),
        ("pretrain", [(*ROWS[0][:2], "g", "train"), (*ROWS[2][:2], "g", "val")], "column group: 'g'"),
        (
            "finetune",
            [*ROWS[:2], ("c.wav", "tram", "", "val")],
            "'tram' in 1 held-out clips .* without any clip in tra",
        ),
        (
            "evaluate",
            [("a.wav", "bus;tram", "", "train"), *ROWS[1:]],
            "metadata row 2: 'bus;tram': should be one class",
        ),
        ("pipeline", [(name, "", "", split) for name, _, _, split in ROWS], "no clip of split train has a scene_label"),
        ("prepare", [], "has no rows"),
    ],
)
def test_a_wrong_table_ends_the_job_at_once(
    run: Run, tmp_path: Path, job: str, rows: list[tuple[str, ...]], message: str
) -> None:
    status, text = run(job, "small", "--storage", "st", "--data.tables", write_table(tmp_path / "own", rows))
    assert status == 1
    assert re.search(message, text), text
    assert text.startswith("error: ")
    assert "\n" not in text
    assert not (tmp_path / "st" / "artifacts").exists()


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("prepare", "small --data.tables gone.csv", r"gone\.csv can't be read: there is no such file"),
        ("prepare", "small --data.tables own/a.wav", r"own/a\.wav, row 1: .* is not UTF-8"),
        ("prepare", "small", r"needs --data\.tables"),
        ("prepare", "--data.dataset esc51", "'esc51' is unknown .did you mean esc50.*; valid: synthetic, table"),
        ("pipeline", "--storage own/a.wav/below", r"--storage .*own/a\.wav/below can't be written: .*Not a directory"),
        ("pipeline", "--storage nonsense://me:hunter2@bucket", r"--storage nonsense://\*\*\*@bucket can't be written"),
        ("pipeline", "--json gone/result.json", r"--json gone/result\.json can't be written: there is no folder gone"),
        ("predict", "--json own", "--json own is a folder"),
        ("predict", "--predict.inputs own", "--predict.output is missing: name a .csv or .parquet"),
        ("predict", "--predict.inputs own --predict.output x.txt", r"--predict\.output x\.txt must name a \.csv or"),
        ("predict", "--predict.inputs own --predict.output gone/x.csv", r"gone/x\.csv .* there is no folder gone"),
        ("predict", "--predict.output x.csv", r"--predict\.inputs names no file"),
        ("predict", "--predict.output x.csv --predict.inputs gone.csv", r"gone\.csv can't be read"),
        ("predict", "--predict.output x.csv --predict.inputs empty", "no audio file .* below empty"),
        ("predict", "--predict.output x.csv --predict.inputs own --predict.model own", "own is not a classifier"),
        ("predict", "small --data.tables own/metadata.csv --predict.output x.csv --predict.inputs own", "not finished"),
        ("serve", "--serve.model own", r"--serve\.model own is not a classifier: it has no classifier\.json"),
        ("serve", "small --data.tables own/metadata.csv", r"not finished.*--serve\.model"),
        ("export", "", r"needs --export\.model, .*, and --export\.output"),
        ("export", "--export.model gone --export.output own", r"--export\.model .*gone holds neither classifier\.json"),
        ("finetune", "small --data.tables own/metadata.csv --finetune.init-from own", "neither a pre-training"),
        ("pretrain", "small --data.tables own/metadata.csv --pretrain.init-from a.pth", r"a\.pth can't be read"),
    ],
)
def test_bad_input_ends_the_job_at_once(run: Run, tmp_path: Path, job: str, words: str, message: str) -> None:
    write_table(tmp_path / "own", ROWS)
    (tmp_path / "empty").mkdir()
    status, text = run(job, *words.split())
    assert status == 1
    assert re.search(message, text), text
    assert text.startswith("error: ")
    assert "\n" not in text
    assert "hunter2" not in text
    assert not {path.name for path in tmp_path.iterdir()} - {"own", "empty", "raymae-storage"}
    assert not (tmp_path / "raymae-storage" / "datasets").exists()


def test_an_old_name_in_a_file_of_settings_names_the_new_one(run: Run, tmp_path: Path) -> None:
    for old, new in (("finetune.centre", "finetune.subtract_band_mean"), ("audit.listen", "audit.same_recording")):
        (tmp_path / "old.json").write_text(json.dumps({old: True}))
        assert run("pipeline", "synthetic", "--settings", "old.json") == (
            2,
            f"error: --settings: {old} is now called {new}",
        )


# Whole jobs ----------------------------------------------------------------------------------------------------------


def test_a_real_job_ends_in_one_line_without_loading_ray(tmp_path: Path) -> None:
    code = "import atexit, runpy, sys; sys.argv = sys.argv[1:]; atexit.register(lambda: print(*sorted(sys.modules)));"
    job = [sys.executable, "-c", f"{code} runpy.run_path(sys.argv[0], run_name='__main__')", ROOT / "jobs/pipeline.py"]
    done = subprocess.run([*job, "small", "--data.tables", "gone.csv"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/gone.csv can't be read: there is no such file\n"
    assert not {"ray", "torch", "mlflow"} & set(done.stdout.split())


def test_a_dry_run_writes_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # in a thread: a process takes ten seconds to load torch
    monkeypatch.setattr(trial_steps, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    table = write_table(tmp_path / "own", ROWS)
    monkeypatch.chdir(tmp_path)
    words = ["small", "--data.tables", table, "--dry-run", "--json", "plan.json", "--evaluate.baselines"]
    words += ["--compute.torch-threads", "1"]
    words += ["--model.embed-dim", "32", "--model.num-heads", "2", "--model.mlp-ratio", "1"]  # test_dry_run measures
    monkeypatch.setattr(sys, "argv", ["jobs/pipeline.py", *words])
    runpy.run_path(str(ROOT / "jobs" / "pipeline.py"), run_name="__main__")
    plan = json.loads(Path("plan.json").read_text())["plan"]
    assert list(plan) == ["prepare", "pretrain", "finetune", "pseudo_label", "student", "evaluate", "register"]
    assert not any(plan.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in plan)
    assert all(f"  {kind}: 0." in printed for kind in ("pretrain", "finetune"))  # as many parameters


def test_latent_targets_need_no_second_option() -> None:
    """`small` normalises its target patches, which has no effect on latent targets."""
    model = parse(["small", "--model.name", "latent"]).model
    assert (model.name, model.norm_target) == ("latent", False)
