"""A sweep's trials on Ray Tune."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymae.cli.arguments import parse
from raymae.storage.folder import open_storage
from raymae.sweep.results import read_records
from raymae.sweep.run import run_sweep
from tests.support.audio_files import write_clips, write_table


@pytest.mark.ray
def test_every_point_is_run_and_recorded(tmp_path: Path, ray_cluster: None) -> None:
    fields = {
        "--storage": tmp_path / "storage",
        "--data.dataset": "table",
        "--data.tables": write_table(tmp_path, write_clips(tmp_path, 60)),
        "--pretrain.epochs": 2,
        "--pretrain.warmup-epochs": 1,
        "--pretrain.probe-clips": 0,
        "--finetune.epochs": 4,
        "--finetune.warmup-epochs": 1,
        "--finetune.head-epochs": 1,
        "--compute.torch-threads": 1,
    }
    words = ["synthetic", *(str(word) for pair in fields.items() for word in pair)]
    space = ["--sweep.space", "pseudo_label.coverage=0.3,0.7", "--sweep.no-early-stopping"]
    result = run_sweep(parse([*words, *space], ""))

    records = read_records(open_storage(result["sweep_folder"]))
    assert [one.status for one in records.values()] == ["finished"] * 2
    assert "undelivered" not in result
    assert result["best"]["score"] == max(one.score for one in records.values() if one.score is not None)
