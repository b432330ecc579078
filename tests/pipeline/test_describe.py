"""What MLflow is told of a run: its data set, by a digest of clips, labels and split, without secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymae.config import Config, DataConfig, SplitConfig
from raymae.datasets.recordings import recordings_of
from raymae.datasets.splits.assign import write_split
from raymae.pipeline.plan.init_weights import find
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.reports.describe import NOTE, data_name, data_set, data_source, job_note, run_tags
from raymae.storage.folder import Folder, open_storage
from tests.support.training import TINY


def told(clips: pa.Table, storage: Folder, config: Config = TINY, stage: str = "") -> dict[str, Any]:
    plan = Plan(config, clips, storage, "register", find(config, storage, "register"))
    write_split(plan.run_folder, recordings_of(clips), config.data.split)
    assert run_tags(plan, job_note(plan))["mlflow.source.name"] == "jobs/pipeline.py"
    assert "prepare, pretrain" in run_tags(plan, job_note(plan))[NOTE]
    return data_set(plan, stage)


def test_the_digest_changes_with_the_clips_their_labels_and_their_split(clips: pa.Table, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    first = told(clips, storage)
    assert len(first["digest"]) <= 36, "MLflow's limit"
    assert first["profile"]["num_rows"] == len(clips)
    counts = {split: one["clips"] for split, one in first["profile"]["splits"].items()}
    assert counts == {one["values"]: one["counts"] for one in clips["split"].value_counts().to_pylist()}
    other = replace(TINY, finetune=replace(TINY.finetune, lr=0.5))
    assert told(clips, storage, other)["digest"] == first["digest"]
    labels = clips["scene_label"].to_pylist()
    place = clips.column_names.index("scene_label")
    swapped = clips.set_column(place, "scene_label", pa.array(labels[::-1], pa.string()))
    moved = clips.set_column(
        clips.column_names.index("split"), "split", pa.array(clips["split"].to_pylist()[::-1], pa.string())
    )
    found = {told(one, storage)["digest"] for one in (clips, clips.slice(1), swapped, moved)}
    assert len(found) == 4
    assert (first["context"], told(clips, storage, stage="evaluate")["context"]) == ("training", "evaluation")


def test_names_and_places_of_data() -> None:
    tables = DataConfig(dataset="table", tables=("s3://me:secret@bucket/walks/metadata.csv", "rec/more.csv"))
    assert data_name(tables) == "walks/metadata.csv+rec/more.csv"
    kind, where = data_source(tables)
    assert kind == "s3"
    assert "secret" not in str(where)
    assert data_name(DataConfig(dataset="esc50", root="/data/esc", split=SplitConfig(kind="table"))) == "esc50"
    assert data_source(DataConfig())[0] == "code"
