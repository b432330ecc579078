"""The comparison of two finished evaluations, as in jobs/evaluate.py."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from raymae.config import Config, EvaluateConfig
from raymae.evaluation.report.compared import compare_evaluations
from raymae.pipeline.job import run_job
from raymae.storage.folder import Folder
from tests.support.predictions import finish


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A good one and a bad one."""
    folder = Folder(str(tmp_path_factory.mktemp("evaluations")))
    return [finish(folder / name, share, 1).url for name, share in (("good", 0.95), ("bad", 0.2))]


def test_the_job_compares_model_by_model(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = run_job("evaluate", Config(evaluate=EvaluateConfig(compare=tuple(pair))))
    reports = [Folder(url).read_json("report.json")["metrics"] for url in pair]
    assert list(result["differences"]) == ["cnn", "student"]
    for name, by_split in result["differences"].items():
        for split, found in by_split.items():
            scores = [report[name][split]["macro_accuracy"] for report in reports]
            assert [found["first"], found["second"]] == pytest.approx(scores)
            assert found["value"] == pytest.approx(scores[0] - scores[1])
    assert result["differences"]["cnn"]["val"]["p_value"] == 1  # the same guesses
    assert result["differences"]["student"]["val"]["p_value"] < 0.01
    printed = capsys.readouterr().out
    assert "Split: visit, seed 0." in printed
    line = next(line for line in printed.splitlines() if "pseudo-labels" in line and "test_seen" in line)
    assert f"{result['differences']['student']['test_seen']['value']:+.3f} [" in line


def test_a_run_folder_gives_its_evaluation(pair: list[str], tmp_path: Path) -> None:
    runs = Folder(str(tmp_path / "run"))
    runs.write_json("result.json", {"stages": {"evaluate": {"folder": pair[0]}}})
    assert compare_evaluations([runs.url, pair[1]])["first"] == pair[0]


def test_evaluations_of_different_clips_are_an_error(pair: list[str], tmp_path: Path) -> None:
    fewer = finish(Folder(str(tmp_path / "fewer")), 0.9, 2, drop=7)
    with pytest.raises(ValueError, match="their clips of val differ: 90 and 89"):
        compare_evaluations([pair[0], fewer.url])


def test_an_unfinished_evaluation_is_an_error(pair: list[str], tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(Folder(pair[1]).path(), tmp_path / "bad"))
    (unfinished / "done.json").unlink()
    with pytest.raises(ValueError, match=r"bad is not a finished evaluation: it has no done\.json"):
        compare_evaluations([pair[0], str(unfinished)])


def test_wrong_settings_of_compare() -> None:
    with pytest.raises(ValueError, match="names 1 folders; it takes the two"):
        EvaluateConfig(compare=("one",))
    with pytest.raises(ValueError, match=r"an option of jobs/evaluate\.py"):
        run_job("register", replace(Config(), evaluate=EvaluateConfig(compare=("one", "other"))))
