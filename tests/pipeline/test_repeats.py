"""Several seeds of one job: the arithmetic of the tables, and that only what lacks is run."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.cluster import connect
from raymae.config import RANDOM, Config, DataConfig, EvaluateConfig
from raymae.pipeline.repeats import escape, latex, markdown, run_repeats, scores_csv, spreads_of, summary
from raymae.pipeline.run import run_plan
from raymae.storage.folder import Folder, open_storage
from tests.support.audio_files import write_clips, write_table
from tests.support.training import TINY

scores = st.floats(0, 1)


@st.composite
def results(draw: st.DrawFn) -> dict[int, dict[str, Any]]:
    """What some seeds' runs gave."""
    models = draw(st.lists(st.sampled_from(["svm", "cnn", "finetune", "a_b&c"]), min_size=1, unique=True))
    splits = draw(st.lists(st.sampled_from(["val", "test", "test_unseen"]), min_size=1, unique=True))
    return {
        seed: {"metrics": {m: {s: {"clips": 7, "macro_accuracy": draw(scores)} for s in splits} for m in models}}
        for seed in range(draw(st.integers(0, 9)), 10)
    }


@given(results())
def test_tables_hold_every_score_and_its_spread(found: dict[int, dict[str, Any]]) -> None:
    spreads = spreads_of({seed: one["metrics"] for seed, one in found.items()}, "macro_accuracy")
    lines = list(csv.DictReader(io.StringIO(scores_csv(found, "macro_accuracy"))))
    assert {(int(line["seed"]), line["model"], line["split"]): float(line["score"]) for line in lines} == {
        (seed, model, split): values["macro_accuracy"]
        for seed, one in found.items()
        for model, splits in one["metrics"].items()
        for split, values in splits.items()
    }
    table, text = latex(spreads, "macro_accuracy", list(found)), markdown(spreads)
    for model, splits in summary(spreads).items():
        for split, values in splits.items():
            mine = [float(line["score"]) for line in lines if (line["model"], line["split"]) == (model, split)]
            assert values["mean"] == pytest.approx(statistics.fmean(mine))
            assert (values["sd"] is None) == (len(mine) == 1)
            deviation = "" if len(mine) == 1 else f" ± {statistics.stdev(mine):.3f}"
            assert f"{statistics.fmean(mine):.3f}{deviation}" in text
            assert f"{statistics.fmean(mine):.3f}{deviation.replace('±', '$' + chr(92) + 'pm$')}" in table


@given(results())
def test_latex_rows_have_as_many_cells_as_columns(found: dict[int, dict[str, Any]]) -> None:
    table = latex(spreads_of({s: one["metrics"] for s, one in found.items()}, "macro_accuracy"), "x", list(found))
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
