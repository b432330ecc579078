"""Spaces of a sweep as text, drawn points, and files of settings. Neither Ray nor audio."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.cli.arguments import parse
from raymae.config import Config, SweepConfig, changed, differences, field_type, from_text, to_dict, to_text, typed
from raymae.config.recipes import RECIPES
from raymae.sweep.conditions import check_conditions
from raymae.sweep.results import settings_of
from raymae.sweep.space import Axis, drawn, grid, label, parse_axis, parse_space, size


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("model.mask_ratio=0.6,0.75", Axis("model.mask_ratio", (0.6, 0.75))),
        ("--model.mask-ratio= 0.6, 1", Axis("model.mask_ratio", (0.6, 1.0))),
        ("model.depth=4,8", Axis("model.depth", (4, 8))),
        ("model.patch_size=16+16,8+8", Axis("model.patch_size", ((16, 16), (8, 8)))),
        ("finetune.pool=cls,mean", Axis("finetune.pool", ("cls", "mean"))),
        ("finetune.subtract_band_mean=True,False", Axis("finetune.subtract_band_mean", (True, False))),
        ("finetune.layer=None,3", Axis("finetune.layer", (None, 3))),
        ("data.root=../a,../b", Axis("data.root", ("../a", "../b"))),
        ("finetune.lr=log:1e-4..1e-2", Axis("finetune.lr", low=1e-4, high=1e-2, log=True)),
        ("finetune.weight_decay=0..0.1", Axis("finetune.weight_decay", low=0.0, high=0.1)),
        ("model.depth=uniform:2..6", Axis("model.depth", low=2, high=6, whole=True)),
    ],
)
def test_an_axis_is_read_as_its_field_is_typed(text: str, axis: Axis) -> None:
    assert parse_axis(text) == axis
    assert parse_axis(axis.text()) == axis
    assert [type(value) for value in parse_axis(text).values] == [type(value) for value in axis.values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model.mask_rato=1,2",
            r"mask_rato \(did you mean model\.mask_ratio\?\); valid here: model\.name, .*model\.mask_ratio,",
        ),
        (
            "modle.mask_ratio=1,2",
            r"mask_ratio \(did you mean model\?\); valid here: recipe, seed, .*model, pretrain",
        ),
        ("model=1,2", r"model is a section, not a setting; valid here: model\.name,"),
        ("model.mask_ratio.low=1,2", r"model\.mask_ratio has no fields"),
        ("model.mask_ratio", "should be FIELD=VALUES"),
        ("model.mask_ratio=", "should be FIELD=VALUES"),
        ("model.mask_ratio=0.6,much", r"model\.mask_ratio = 'much': input should be a valid number"),
        ("model.depth=2,2.5", r"model\.depth = '2\.5': input should be a valid integer"),
        ("finetune.pool=cls,max", r"finetune\.pool = 'max': input should be 'mean', 'cls' or 'row_stats'"),
        ("model.patch_size=16,8", r"model\.patch_size = '16': should be 2 values joined by \+, as in 16\+16"),
        ("model.mask_ratio=0.6", r"one value is nothing to compare; set it with --model\.mask_ratio 0\.6"),
        ("model.mask_ratio=0.6,.60", r"names 0\.6 twice"),
        ("finetune.lr=log:0..1", "should begin above 0"),
        ("finetune.lr=2..1", "put the smaller end first"),
        ("finetune.lr=1..inf", "between two numbers"),
    ],
)
def test_a_wrong_axis_is_one_clear_message(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axis(text)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"space": ("seed=1,2", "seed=3,4")}, "names seed twice"),
        ({"space": ("finetune.lr=1e-4..1e-2",)}, "a range, which has no grid"),
        ({"space": ("audio.f_min=0..50",), "search": "random"}, "a range needs a new one for each trial"),
        ({"trials": 3}, "sweep.trials = 3 has no effect on sweep.search = grid"),
        ({"search": "halton"}, "must be one of grid, random, optuna"),
        ({"grace": 1.0}, r"sweep.grace = 1.0 must lie in \(0, 1\)"),
        ({"cpus_per_worker": 0}, "must be positive"),
    ],
)
def test_a_wrong_sweep_is_one_clear_message(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space(Config(sweep=SweepConfig(**sweep)))


def test_the_default_is_mask_ratio_and_the_acceptance_of_pseudo_labels() -> None:
    second = {name: [axis.path for axis in parse_space(RECIPES[name]())][1:] for name in ("synthetic", "audiomae")}
    assert second == {"synthetic": ["pseudo_label.coverage"], "audiomae": ["pseudo_label.confidence_threshold"]}
    several = [axis.path for axis in parse_space(RECIPES["audioset"]())]
    assert several == ["model.mask_ratio"]
    given = replace(RECIPES["small"](), finetune=replace(RECIPES["small"]().finetune, init_from="x.pth"))
    assert [axis.path for axis in parse_space(given)] == ["pseudo_label.coverage"]
    consistent = replace(RECIPES["audiomae"](), unlabelled=("pseudo_labels", "consistency"))
    assert [axis.path for axis in parse_space(consistent)][1:] == ["consistency.confidence_threshold"]
    assert size(parse_space(RECIPES["synthetic"]())) == len(list(grid(parse_space(RECIPES["synthetic"]())))) == 9


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_default_space_of_every_recipe_meets_its_conditions(recipe: str) -> None:
    check_conditions(RECIPES[recipe](), parse_space(RECIPES[recipe]()))


TEXTS = ("finetune.lr=log:1e-4..1e-2", "model.depth=2..4", "finetune.pool=cls,mean")


@given(st.integers(1, 40), st.integers(0, 5))
def test_drawn_points_differ_lie_inside_and_begin_the_longer_draw(count: int, seed: int) -> None:
    axes = [parse_axis(text) for text in TEXTS]
    points = drawn(axes, count, seed)
    assert len({label(point) for point in points}) == count
    assert all(1e-4 <= one["finetune.lr"] <= 1e-2 and one["model.depth"] in (2, 3, 4) for one in points)
    assert drawn(axes, count + 3, seed)[:count] == points
    lists = [parse_axis("model.depth=2,3,4"), axes[2]]
    assert len(drawn(lists, 50, seed)) == size(lists) == 6
    assert size(axes) is None


def test_logarithmic_draws_are_even_over_the_logarithm() -> None:
    points = drawn([parse_axis("finetune.lr=log:1e-4..1e-2")], 400, 0)
    assert math.isclose(sum(one["finetune.lr"] < 1e-3 for one in points) / 400, 0.5, abs_tol=0.08)


# Fields by their paths -----------------------------------------------------------------------------------------------


def leaves_of(value: dict[str, Any], start: str = "") -> list[str]:
    return [
        path
        for name, item in value.items()
        for path in (leaves_of(item, f"{start}{name}.") if isinstance(item, dict) else [f"{start}{name}"])
    ]


@pytest.mark.parametrize("path", leaves_of(to_dict(Config())))
def test_every_field_has_a_type_and_reads_its_own_default(path: str) -> None:
    value: Any = Config()
    for name in path.split("."):
        value = getattr(value, name)
    assert field_type(Config, path) is not None
    assert typed(Config, path, json.loads(json.dumps(value))) == value
    if "+" not in to_text(value):
        assert from_text(Config, path, to_text(value)) in (value, () if value == "" else value)


def test_changes_and_differences_are_each_others_inverse() -> None:
    values = {"seed": 3, "model.mask_ratio": 0.5, "finetune.augment.mixup_p": 0.25, "pretrain.lr": 1e-3}
    other = changed(Config(), values)
    assert differences(to_dict(other), to_dict(Config())) == values
    with pytest.raises(ValueError, match=r"model\.mask_ratio = 2"):
        changed(Config(), {"model.mask_ratio": 2})


# Settings in a file --------------------------------------------------------------------------------------------------


def test_best_settings_are_a_file_that_every_job_takes(tmp_path: Path) -> None:
    words = ["small", "--data.tables", "a.csv", "--finetune.epochs", "50", "--sweep.trials", "3"]
    config = parse([*words, "--sweep.search", "random", "--tracking.uri", "https://me:hunter2@host"])
    values = {"model.mask_ratio": 0.6, "pseudo_label.coverage": 0.3, "model.patch_size": (8, 16)}
    found = settings_of(config, values)
    assert found == {
        "recipe": "small",
        "data.tables": ["a.csv"],
        "finetune.epochs": 50.0,
        "model.mask_ratio": 0.6,
        "model.patch_size": [8, 16],
        "pseudo_label.coverage": 0.3,
    }
    (tmp_path / "best.json").write_text(json.dumps(found))
    whole = replace(changed(config, values), sweep=SweepConfig(), tracking=Config().tracking)
    for words in (["small"], []):
        assert parse([*words, "--settings", str(tmp_path / "best.json")]) == whole
    over = parse([f"--settings={tmp_path}/best.json", "--finetune.epochs", "7", "--model.mask-ratio", ".5"])
    assert (over.finetune.epochs, over.model.mask_ratio, over.pseudo_label.coverage) == (7, 0.5, 0.3)


def test_a_whole_configuration_is_a_file_of_settings(tmp_path: Path) -> None:
    config = parse(["small", "--model.depth", "5"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert parse(["--settings", str(tmp_path / "config.json")]) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"model.mask_rato": 1}',
            "mask_rato (did you mean model.mask_ratio?); valid here: model.name",
        ),
        (
            '{"model": {"mask_rato": 1}}',
            "mask_rato (did you mean model.mask_ratio?); valid here: model.name",
        ),
        ('{"settings": "x"}', "unknown setting settings; valid here"),
        ('{"model": {}}', "model is a section"),
        ('{"model.depth": 2.5}', "model.depth = 2.5: input should be a valid integer"),
        ('{"model.mask_ratio": 1}', "model.mask_ratio = 1.0 must lie in [0, 1)"),
        ('{"recipe": "audiomae"}', "for recipe 'audiomae', not for 'small'"),
        ("[1]", "should hold an object"),
        ("{", "x.json is damaged"),
        (None, "can't be read"),
    ],
)
def test_a_wrong_file_of_settings_is_one_clear_message(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        parse(["small", "--settings", str(tmp_path / "x.json")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
