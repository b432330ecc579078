"""Generated clips of absent data sets: the true counts, and a plan of every recipe without the audio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from raymae.config.recipes import RECIPES
from raymae.datasets.clips import load_nominal
from raymae.datasets.published.nominal import SHAPES, absent, nominal
from raymae.pipeline.plan.make import make_plan
from raymae.storage.folder import open_storage
from tests.support.audio_files import write_clips, write_table


@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_those_of_the_data_set(name: str) -> None:
    rows = nominal(name)
    for split, part in SHAPES[name].items():
        mine = rows.filter(pc.equal(rows["split"], split))
        assert len(mine) == sum(part.cities.values()) == sum(part.labels.values()) + part.unlabelled
        for column, counts in (("scene_label", part.labels), ("city", part.cities), ("device", part.devices)):
            found = {item["values"]: item["counts"] for item in pc.value_counts(mine[column].drop_null()).to_pylist()}
            assert found == {key: count for key, count in counts.items() if key}
        assert 0.5 * part.groups < len(mine["group"].unique()) < 2.5 * part.groups
    assert len(rows["path"].unique()) == len(rows)


def test_a_group_is_of_one_time_and_city() -> None:
    rows = nominal("cas2023").to_pandas()
    per_group = rows.groupby("group")[["city", "recorded"]].nunique()
    assert (per_group == 1).all(axis=None)


@pytest.mark.parametrize("name", ["paper_dcase", "paper", "honest"])
def test_a_recipe_is_planned_without_its_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # without any data set
    config = replace(RECIPES[name](), recipe=name, dry_run=True)
    plan = make_plan(config, "register", open_storage(str(tmp_path)))
    assert "missing here: " in capsys.readouterr().out
    assert plan.config.audio.n_frames == 640
    splits = dict.fromkeys(plan.clips["split"].to_pylist())
    assert {"train", "test", "pool"} <= set(splits)
    test = plan.rows(["test"])
    assert len(test["scene_label"].drop_null().unique()) == 10
    if name == "paper_dcase":
        assert (len(plan.rows(["train"])), len(test)) == (13_965, 2_970)
    else:
        assert len(plan.rows(["pool"])) == 13_965 + 2_315
        groups = [set(plan.rows([split])["group"].to_pylist()) for split in ("train", "test")]
        assert bool(groups[0] & groups[1]) == (name == "paper")


def test_only_absent_data_sets_are_generated(tmp_path: Path) -> None:
    config = RECIPES["paper"]().data
    assert absent(config) == ["cas2023", "tau2020_mobile"]
    assert absent(replace(config, root=str(tmp_path))) == ["tau2020_mobile"]
    assert absent(RECIPES["small"]().data) == absent(RECIPES["synthetic"]().data) == []
    with pytest.raises(ValueError, match=r"knows cas2023, tau2020_mobile, .*, not 'other'"):
        load_nominal(replace(config, pool_datasets=("other:x",)), None)


def test_a_dry_run_reads_pool_tables_and_weights(tmp_path: Path) -> None:
    table = write_table(tmp_path, write_clips(tmp_path, 3))
    config = replace(RECIPES["paper"]().data, pool_tables=(str(table),), pool_weights=(3.0, 0.5))
    clips = load_nominal(config, None)
    assert len(clips) == 8_700 + 3 + 13_965 + 2_315
    weights = pc.value_counts(clips.filter(pc.equal(clips["split"], "pool"))["weight"]).to_pylist()
    assert {item["values"]: item["counts"] for item in weights} == {3.0: 3, 0.5: 13_965 + 2_315}
    with pytest.raises(ValueError, match=r"data\.dataset = 'other' is unknown"):
        load_nominal(replace(config, dataset="other"), None)
