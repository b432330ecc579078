"""Several seeds or folds of one job: the arithmetic of the tables, and that only what is missing is run."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.cli.main import is_unregistered
from raymae.cluster import connect
from raymae.config import RANDOM, Config, DataConfig, EvaluateConfig
from raymae.datasets.clips import load
from raymae.pipeline import repeats
from raymae.pipeline.repeats import escape, latex, markdown, run_repeats, scores_csv, spreads_of, summary
from raymae.pipeline.run import run_plan
from raymae.storage.folder import Folder, open_storage
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY

scores = st.floats(0, 1)


@st.composite
def results(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """What the runs of some seeds or folds gave."""
    models = draw(st.lists(st.sampled_from(["svm", "cnn", "finetune", "a_b&c"]), min_size=1, unique=True))
    splits = draw(st.lists(st.sampled_from(["val", "test", "test_unseen"]), min_size=1, unique=True))
    return {
        str(seed): {"metrics": {m: {s: {"clips": 7, "macro_accuracy": draw(scores)} for s in splits} for m in models}}
        for seed in range(draw(st.integers(0, 9)), 10)
    }


@given(results())
def test_tables_hold_every_score_and_its_spread(found: dict[str, dict[str, Any]]) -> None:
    spreads = spreads_of({seed: one["metrics"] for seed, one in found.items()}, "macro_accuracy")
    lines = list(csv.DictReader(io.StringIO(scores_csv(found, "macro_accuracy"))))
    assert {(line["seed"], line["model"], line["split"]): float(line["score"]) for line in lines} == {
        (seed, model, split): values["macro_accuracy"]
        for seed, one in found.items()
        for model, splits in one["metrics"].items()
        for split, values in splits.items()
    }
    table, text = latex(spreads, "macro_accuracy", "seeds"), markdown(spreads)
    for model, splits in summary(spreads).items():
        for split, values in splits.items():
            mine = [float(line["score"]) for line in lines if (line["model"], line["split"]) == (model, split)]
            assert values["mean"] == pytest.approx(statistics.fmean(mine))
            assert (values["sd"] is None) == (len(mine) == 1)
            deviation = "" if len(mine) == 1 else f" ± {statistics.stdev(mine):.3f}"
            assert f"{statistics.fmean(mine):.3f}{deviation}" in text
            assert f"{statistics.fmean(mine):.3f}{deviation.replace('±', '$' + chr(92) + 'pm$')}" in table


@given(results())
def test_latex_rows_have_as_many_cells_as_columns(found: dict[str, dict[str, Any]]) -> None:
    table = latex(spreads_of({s: one["metrics"] for s, one in found.items()}, "macro_accuracy"), "x", "seeds")
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    columns = table.partition(r"\begin{tabular}{")[2].partition("}")[0]
    assert all(len(row.replace(r"\&", "").split("&")) == len(columns) for row in rows)
    assert [table.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


@given(st.text("ab_&%$#{}~^\\"))
def test_special_characters_are_escaped(text: str) -> None:
    assert escape(text).count("\\") == sum(character not in "ab" for character in text)


def test_only_jobs_with_scores_take_seeds(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"seeds = 2 is for jobs that evaluate: jobs/evaluate\.py and jobs/pipeline\.py"
    ):
        run_repeats(replace(TINY, seeds=2), "pretrain", open_storage(str(tmp_path)))
    with pytest.raises(ValueError, match="seeds = 0 must be at least 1"):
        replace(TINY, seeds=0)


def fold_table(folder: Path, fold_of: Callable[[int], str], label_of: Callable[[int], str]) -> Config:
    """Settings for a table of twelve empty recordings with a column of folds."""
    lines = [f"{number}.wav,{label_of(number)},{fold_of(number)}" for number in range(12)]
    (folder / "t.csv").write_text("\n".join(["filename,category,fold", *lines]))
    for number in range(12):
        (folder / f"{number}.wav").touch()
    data = DataConfig(dataset="table", tables=(str(folder / "t.csv"),), label_column="category", fold_column="fold")
    return replace(TINY, recipe="small", data=data, folds=True, storage=str(folder / "storage"))


def test_every_fold_is_tested_on_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = fold_table(tmp_path, lambda number: str(number % 3 + 9), lambda number: "ab"[number // 3 % 2])
    tested = []

    def run(one: Config, target: str, storage: Folder, started: float) -> dict[str, Any]:
        splits = load(one.data, None, "single")["split"].to_pylist()
        tested.append([number for number, split in enumerate(splits) if split == "test"])
        found = {"clips": splits.count("test"), "macro_accuracy": 0.5 + len(tested) / 10}
        metrics = {"finetune": {"test": found}}
        folder = f"{one.storage}/runs/{one.data.test_fold}"
        return {"job": "pipeline", "run_folder": folder, "metrics": metrics, "undelivered": "x"}

    monkeypatch.setattr(repeats, "run_plan", run)
    result = run_repeats(config, "register", open_storage(config.storage))
    assert tested == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert list(result["folds"]) == ["9", "10", "11"]
    values = result["summary"]["finetune"]["test"]
    assert (values["mean"], values["sd"]) == (pytest.approx(0.7), pytest.approx(0.1))
    assert "macro_accuracy, mean ± standard deviation over folds 9, 10, 11" in capsys.readouterr().out
    folder = Folder(result["run_folder"])
    lines = list(csv.DictReader(io.StringIO(folder.read_bytes("folds.csv").decode())))
    assert [(line["fold"], line["split"], float(line["score"])) for line in lines] == [
        ("9", "test", 0.6), ("10", "test", 0.7), ("11", "test", 0.8),
    ]  # fmt: skip
    assert r"0.700 $\pm$ 0.100" in folder.read_bytes("folds.tex").decode()
    assert folder.read_json("result.json")["summary"] == result["summary"]
    assert is_unregistered(result)


def test_a_fold_that_can_t_be_tested_on_stops_the_job_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "run_plan", lambda *_: pytest.fail("a fold was run"))

    def two(number: int) -> str:
        return "ab"[number // 3 % 2]

    cases = [
        (lambda number: str(number % 3), lambda number: "c" if number == 2 else two(number), "'c' in 1 held-out clips"),
        (
            lambda number: str(number % 3),
            lambda number: "" if number % 3 == 2 else two(number),
            "no clip of fold '2' has",
        ),
        (lambda number: "1", lambda number: "a", "'1' is the only fold"),
        (lambda number: "" if number == 4 else "1", lambda number: "a", "column fold, row 6: '': should name the"),
    ]
    for fold_of, label_of, error in cases:
        config = fold_table(tmp_path, fold_of, label_of)
        with pytest.raises(ValueError, match=error):
            run_repeats(config, "register", open_storage(config.storage))
    with pytest.raises(ValueError, match="folds is for jobs that evaluate"):
        run_repeats(config, "pretrain", open_storage(config.storage))


@pytest.mark.slow
@pytest.mark.ray
def test_finished_seeds_are_found_again(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 60))
    config: Config = replace(
        TINY,
        storage=str(tmp_path / "storage"),
        data=DataConfig(dataset="table", tables=(str(table),)),
        finetune=replace(TINY.finetune, epochs=4, labels="multi", init_from=RANDOM),  # one stage to train
        evaluate=EvaluateConfig(baselines=(), probe_clips=0),
    )
    storage = open_storage(config.storage)
    alone = run_plan(config, "evaluate", storage)
    both = run_repeats(replace(config, seeds=2), "evaluate", storage)
    zero, one = both["seeds"]["0"], both["seeds"]["1"]
    assert all(stage["reused"] for stage in zero["stages"].values())
    assert zero["metrics"] == alone["metrics"]
    assert {name for name, stage in one["stages"].items() if stage["reused"]} == {"prepare"}
    assert zero["run_folder"] != one["run_folder"]
    scores = [result["metrics"]["finetune"]["test_a"]["mAP"] for result in (zero, one)]
    assert both["summary"]["finetune"]["test_a"]["scores"] == scores
    folder = Folder(both["run_folder"])
    assert len(folder.read_bytes("scores.csv").splitlines()) == 1 + 2 * 2
    assert r"\toprule" in folder.read_bytes("scores.tex").decode()
    assert "mean ± standard deviation over seeds 0, 1" in capsys.readouterr().out
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    again = run_repeats(replace(config, seeds=2), "evaluate", storage)
    assert (again["summary"], again["run_folder"]) == (both["summary"], both["run_folder"])
