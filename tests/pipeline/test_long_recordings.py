"""Long recordings from the plan to the scores, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile

from raymae.audio.clip_reader import ClipReader
from raymae.config import AugmentConfig, Config, DataConfig, SplitConfig
from raymae.datasets.recordings import load_clips, recordings_of
from raymae.datasets.splits.split_file import write_split
from raymae.evaluation.recordings import by_recording, has_parts
from raymae.features.streaming import StreamedClips
from raymae.features.write import write_store
from raymae.inference.predictor import Predictor
from raymae.inference.test_time_augmentation import classify
from raymae.pipeline.evaluate import clip_scores, predictions_table
from raymae.pipeline.plan.estimate import estimate
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder, open_storage
from tests.support.classifiers import write_tiny
from tests.support.training import TINY

SECONDS = {"a.flac": 3.3, "b.flac": 0.5, "c.wav": 1.28, "d.flac": 5.0}
NAMES = ["bus", "park"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A table of recordings of several lengths; the last 2.5 s of one are silent."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, (name, seconds) in enumerate(SECONDS.items()):
        rate = (8000, 22050)[number % 2]
        wave = 0.1 * np.random.default_rng(number).standard_normal(round(seconds * rate))
        if name == "d.flac":
            wave[len(wave) // 2 :] = 0
        soundfile.write(folder / name, wave, rate)
    lines = [
        "filename,scene_label,split",
        "a.flac,bus,test",
        "b.flac,park,test",
        "c.wav,park,train",
        "d.flac,bus,train",
    ]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    storage = str(tmp_path_factory.mktemp("storage"))
    return replace(TINY, storage=storage, data=DataConfig(dataset="table", tables=(f"{folder}/t.csv",), shard_mb=0.1))


@pytest.fixture(scope="module")
def clips(config: Config) -> pa.Table:
    return load_clips(config, open_storage(config.storage), "single")


def test_the_plan_counts_clips_and_hours(config: Config, clips: pa.Table) -> None:
    counts = {one["values"]: one["counts"] for one in pc.value_counts(clips["recording"]).to_pylist()}
    assert counts == {"a.flac": 6, "b.flac": 1, "c.wav": 2, "d.flac": 8}
    hours = sum(SECONDS.values()) / 3600
    assert pc.sum(clips["seconds"]).as_py() / 3600 == pytest.approx(hours, abs=1e-4)
    cropped = replace(config, pretrain=replace(config.pretrain, augment=AugmentConfig(crop_seconds=0.32)))
    for one, said in (
        (config, "10 clips of 0.00174 hours, "),
        (cropped, " hours, 51 % of them in an epoch (crops of 0.32 s)"),
    ):
        plan = Plan(one, clips, open_storage(config.storage), "pretrain")
        assert said in estimate(plan)["pretrain"]


def test_scores_of_recordings_are_those_of_the_predictor(config: Config, clips: pa.Table, tmp_path: Path) -> None:
    folder = write_tiny(Folder(str(tmp_path / "classifier")), NAMES)
    store = write_store(Folder(str(tmp_path)), clips, config.audio, ClipReader(config.audio, 10), 0.1)
    assert len(clips) - len(store) == 4  # silent
    rows = np.arange(len(store))
    table = predictions_table(store.clips, classify(store, rows, folder))
    assert has_parts(table)
    found = {row["clip_id"]: row for row in by_recording(table).to_pylist()}
    predictor = Predictor(folder, threads=1)
    for path in pc.unique(clips["path"]).to_pylist():
        row = found[Path(path).name]
        assert row["probabilities"] == pytest.approx(list(predictor(path).values()), abs=2e-3)
    assert clip_scores({"model": table}, NAMES, "single")["model"]["test"]["clips"] == 7
    streamed = StreamedClips(store.folder, store.shards)
    np.testing.assert_array_equal(streamed.read(rows[::-1])[0], store.read(rows[::-1])[0])


def test_the_split_of_a_run_is_one_of_recordings(config: Config, clips: pa.Table, tmp_path: Path) -> None:
    write_split(Folder(str(tmp_path)), recordings_of(clips), config.data.split)
    again = replace(config, data=replace(config.data, split=SplitConfig(file=str(tmp_path))))
    assert load_clips(again, open_storage(config.storage), "single").equals(clips)
    assert recordings_of(clips)["clip_id"].to_pylist() == list(SECONDS)
    assert recordings_of(clips)["group"].null_count == len(SECONDS)


def test_recordings_of_one_clip_are_scored_as_they_are(clips: pa.Table) -> None:
    short = clips.filter(pc.equal(clips["recording"], "b.flac"))
    table = predictions_table(short, np.array([[0.2, 0.8]], np.float32))
    assert by_recording(table) is table
