"""Settings given in Python are those of the options, and wrong names are answered by the right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raymae
from raymae.api.settings import settings_of
from raymae.cli.arguments import parse
from raymae.config import FRONT_ENDS


def test_settings_are_those_of_the_command_line() -> None:
    given = settings_of(
        "small",
        [Path("a.csv"), "s3://bucket/b.csv"],
        {
            "storage": Path("runs"),
            "seed": 3,
            "model": {"size": "tiny", "decoder": "global", "mask_ratio": 0.7, "patch_size": [16, 8]},
            "pretrain": {"epochs": 4, "augment": {"crop_seconds": 1.28}},
            "finetune": {"augment.crop_seconds": None},
            "unlabelled": (),
        },
    )
    options = (
        "small --data.dataset table --data.tables a.csv s3://bucket/b.csv --storage runs --seed 3 --model.size tiny "
        "--model.decoder global --model.mask-ratio 0.7 --model.patch-size 16 8 --pretrain.epochs 4 "
        "--pretrain.augment.crop-seconds 1.28 --finetune.augment.crop-seconds None --unlabelled"
    )
    assert given == parse(options.split())


def test_a_section_may_be_given_whole() -> None:
    config = settings_of("audiomae", {"tables": ["a.csv"], "split": {"val_share": 0.1}}, {"audio": FRONT_ENDS["paper"]})
    assert config.audio == FRONT_ENDS["paper"]
    assert config.data.split.val_share == 0.1


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("smal", {}, r"unknown recipe 'smal' \(did you mean small\?\)"),
        ("small", {"epochs": 4}, r'unknown setting epochs \(did you mean pretrain=\{"epochs": …\}\?\)'),
        ("small", {"pretrian": {"epochs": 4}}, r"unknown setting pretrian \(did you mean pretrain\?\)"),
        ("small", {"pretrain": {"epoch": 4}}, r"unknown setting pretrain\.epoch \(did you mean pretrain\.epochs\?\)"),
        ("small", {"pretrain": 4}, "pretrain is a section, not a setting"),
        ("small", {"pretrain": {"epochs": "four"}}, r"pretrain\.epochs = 'four': input should be a valid number"),
        ("small", {"model": {"size": "bsae"}}, r"model\.size = 'bsae': input should be 'tiny', "),
        ("small", {"finetune": {"centre": True}}, r"finetune\.centre is now called finetune\.subtract_band_mean"),
        ("small", {"seeds": 3}, r"seeds is an option of the command lines of jobs/"),
        ("small", {"sweep": {"trials": 3, "search": "random"}}, r"sweep\.\* are options of jobs/sweep\.py"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
    recipe: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        raymae.pretrain(recipe, "a.csv", **{"storage": tmp_path / "runs", **settings})
    assert not (tmp_path / "runs").exists()
