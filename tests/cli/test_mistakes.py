"""Mistakes by their classes: the message names the thing as it was typed, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymae.cli.arguments import parse
from raymae.cli.mistakes import as_typed, qualified
from raymae.cli.options import options_of
from raymae.config import AugmentConfig, Config, FinetuneConfig, SplitConfig
from raymae.config.recipes import RECIPES
from tests.cli.conftest import Run
from tests.support.tables import ROWS, write_table

SETTINGS = list(options_of(Config()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # names
        ("--pretrain.epoch 3", "unknown setting --pretrain.epoch (did you mean --pretrain.epochs?); --help pretrain"),
        ("--data-tables a.csv", "unknown setting --data-tables (did you mean --data.tables?); --help all"),
        ("--epochs 3", "did you mean --pretrain.epochs or --finetune.epochs or --consistency.epochs?"),
        ("--compute.device cuda", "did you mean --compute.use-gpu?"),
        ("--finetune.augment 3", "--finetune.augment is a section, not a setting; --help finetune.augment"),
        ("-seed 3", "unexpected '-seed': did you mean --seed?"),
        ("--seed 3 -storage x", "-storage begins with one dash, options with two (did you mean --storage?)"),
        ("smal", "unknown recipe 'smal' (did you mean small?); valid: synthetic, small"),
        ("--storage x small", "recipe small has to be the first argument, before all options"),
        ("small a.csv", "unexpected 'a.csv': after the recipe come options"),
        ("--data.tables a.csv", "--data.tables needs a recipe, which is missing: name one for your own recordings"),
        # values
        ("--dry_run True", "--dry-run is a switch and takes no value: write --dry-run, or --no-dry-run to turn it off"),
        ("--seed 3 4", "--seed takes one value; '4' is left over"),
        ("--model.patch-size 8 8 8", "--model.patch-size takes 2 values; '8' is left over"),
        ("--seed", "--seed needs a value: --seed INT. Random seed"),
        ("--pretrain.epochs ten", "--pretrain.epochs ten: should be a number, FLOAT. Passes over"),
        ("--seed 1.0", "--seed 1.0: should be a whole number: --seed 1."),
        ("--seed 1.5", "--seed 1.5: should be a whole number. Random"),
        ("--pretrain.lr nan", "--pretrain.lr nan must be a finite number"),
        ("--data.split.kind sesion", "--data.split.kind sesion: no such choice (did you mean session?); valid: table"),
        ("--evaluate.baselines svm cn", "--evaluate.baselines cn: no such choice (did you mean cnn?); valid: svm"),
        # checks of sections
        ("--pretrain.epochs -3", "--pretrain.epochs -3.0 must be positive"),
        ("--finetune.augment.roll-p 3", "--finetune.augment.roll-p 3.0 is a probability: 0 to 1"),
        ("--consistency.strong.eq-p 3", "--consistency.strong.eq-p 3.0 is a probability: 0 to 1"),
        ("--data.pool-weights 2", "--data.pool-weights 2.0 must hold one positive number for each of the 0 --data.po"),
        ("--data.root x", "--data.root 'x' has no effect with --data.dataset synthetic: name the data set there"),
        ("--audio.clip-seconds 0", "--audio.clip-seconds 0.0 must be longer than --audio.n-fft 1024 samples, 0.064 s"),
    ],
)
def test_a_wrong_command_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(words.split())
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said


def test_every_setting_is_named_as_it_is_typed() -> None:
    for one in SETTINGS:
        assert as_typed(f"{one.path} = -3 must be positive") == f"{one.name} -3 must be positive"
        if "." in one.path:
            assert as_typed(f"a; set {one.path}, or b") == f"a; set {one.name}, or b"


@pytest.mark.parametrize(
    "text",
    [
        "the seed of the storage", "/data.tables/model.name x", "sqlite:///seed.db", "raymae.datasets.clips.DATASETS",
        "model.depthh = 3", "--model.depth 3", "model.json", "pretrain.epochs=3,4",
    ],
)  # fmt: skip
def test_other_words_stay_as_they_are(text: str) -> None:
    assert as_typed(text) == text


def test_fields_of_a_sweep_are_no_options() -> None:
    assert as_typed("sweep.space model.depht=1,2: unknown setting model.depht (did you mean model.depth?)") == (
        "--sweep.space model.depht=1,2: unknown setting model.depht (did you mean model.depth?)"
    )


@pytest.mark.parametrize(
    ("section", "path", "message", "whole"),
    [
        (FinetuneConfig, "finetune", "epochs = 0 must", "finetune.epochs = 0 must"),
        (FinetuneConfig, "finetune", "set mixing_group to 4", "set finetune.mixing_group to 4"),
        (FinetuneConfig, "finetune", "pool, views and epochs", "pool, views and epochs"),
        (AugmentConfig, "consistency.strong", "augment.eq_p = 2", "consistency.strong.eq_p = 2"),
        (AugmentConfig, "pretrain.augment", "augment.eq_p = 2", "pretrain.augment.eq_p = 2"),
        (SplitConfig, "data.split", "data.split.test_share = 1", "data.split.test_share = 1"),
        (Config, "", "seed = 1", "seed = 1"),
    ],
)
def test_fields_get_the_path_of_their_section(section: type, path: str, message: str, whole: str) -> None:
    assert qualified(message, section, path) == whole


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_recipe_takes_a_single_epoch(recipe: str) -> None:
    config = parse([recipe, *["--pretrain.epochs", "1", "--finetune.epochs", "1", "--consistency.epochs", "1"]])
    for training in (config.pretrain, config.finetune, config.consistency.training(config.finetune)):
        assert training.epochs == 1
        assert 0 < training.warmup_share < 0.5


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("predict", "--predict.inputs ownn", "--predict.inputs ownn can't be read; there is no such folder (did you m"),
        ("predict", "--predict.inputs own --predict.model ownn", "no such folder (did you mean own?)"),
        ("predict", "--predict.inputs own --predict.model own", "it has no classifier.json; it holds a.wav, b.wav"),
        ("predict", "--predict.inputs own --predict.model models:/scenes/1", "has no registry (mlflow.db)"),
        (
            "predict",
            "--predict.inputs own --predict.model models:/scenes/1 --tracking.uri sqlite:///mlflow.bd",
            "there is no file",
        ),
        ("promote", "small", "has no registry (mlflow.db)"),
        ("predict", "--predict.inputs own", "has not finished in"),
        ("pipeline", "small --data.tables own/metdata.csv", "no such file (did you mean metadata.csv?)"),
        ("pipeline", "small --data.tables own", "name the table in it: --data.tables own/metadata.csv"),
        ("prepare", "--data.dataset esc51", "'esc51' is unknown (did you mean esc50?)"),
        ("artifacts", "ls --storage gone", "--storage gone holds no artifacts"),
        ("evaluate", "--evaluate.compare gone gone", "it has no done.json; there is no such folder"),
        ("sweep", "--sweep.space model.mask_ratoi=.5,.6", "model.mask_ratoi (did you mean model.mask_ratio?)"),
    ],
)
def test_what_is_not_found_is_answered_by_what_there_is(
    run: Run, tmp_path: Path, job: str, words: str, message: str
) -> None:  # fmt: skip
    write_table(tmp_path / "own", ROWS)
    more = ["--predict.output", "x.csv"] if job == "predict" else []
    status, text = run(job, *words.split(), *more)
    assert status == 1
    assert message in text
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "own"}
    assert written == set(), "a question leaves no file behind"


def test_the_storage_beside_that_has_the_registry_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").touch()
    assert f"; {tmp_path}/runs has one" in run("promote", "small", "--storage", "other")[1]


@pytest.mark.parametrize("rows", [[(f"own/{name}", *rest) for name, *rest in ROWS]])
def test_files_that_the_working_directory_has(run: Run, tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    table = write_table(tmp_path / "own", rows)
    assert "the working directory has them: --data.audio-root ." in run("prepare", "small", "--data.tables", table)[1]


def test_absolute_file_names_get_their_folder(run: Run, tmp_path: Path) -> None:
    write_table(tmp_path / "own", ROWS)
    table = write_table(tmp_path / "other", [(str(tmp_path / "own" / name), *rest) for name, *rest in ROWS])
    text = run("prepare", "small", "--data.tables", table)[1]
    assert f"--data.audio-root {tmp_path}/own reads them there" in text
