"""`data.store = none`: the same clips, batches and results as with a feature store."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
import torch
from safetensors.torch import load as load_tensors

from raymae.cluster.feed import read_segment, segments, split_in_order, windows_of
from raymae.config import Config, DataConfig
from raymae.features import streaming
from raymae.features.store import FeatureStore, log_mel_layout
from raymae.features.streaming import CHECKED, StreamedClips
from raymae.pipeline.plan.make import make_plan
from raymae.pipeline.run import run_plan
from raymae.storage.folder import Folder, open_storage
from raymae.training.batches.windows import read_window
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import TINY_AUDIO, write_clips, write_table
from tests.support.training import TINY, make_spec


@pytest.fixture
def streamed(store: FeatureStore) -> StreamedClips:
    """The stored clips, read from the audio."""
    return StreamedClips(store.folder, store.shards, timeout=10)


def test_features_are_the_same_to_the_bit(store: FeatureStore, streamed: StreamedClips) -> None:
    rows = np.random.default_rng(0).permutation(len(store))[:50]
    for stored, decoded in zip(store.read(rows), pickle.loads(pickle.dumps(streamed)).read(rows), strict=True):
        np.testing.assert_array_equal(decoded, stored)
    assert len(streamed) == len(store)
    assert streamed.audio == TINY_AUDIO


def test_training_gives_the_same_weights(store: FeatureStore, streamed: StreamedClips, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0))
    weights = []
    for source in (store, streamed):
        artifact = Folder(str(tmp_path / type(source).__name__))
        spec = StageSpec(name="pretrain", kind="pretrain", config=config, artifact=artifact, store=source)
        run_stage(spec, BareSession(source, artifact))
        weights.append(artifact.read_bytes("model.safetensors"))
    assert weights[0] == weights[1]


def test_a_clip_that_has_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "RETRIES", (0.01,))
    artifact = Folder(str(tmp_path / "prepare"))
    clips = write_clips(tmp_path / "audio", 20)
    artifact.write_table("clips.parquet", clips)
    artifact.write_json("manifest.json", {"audio": {}, "shards": []})
    streamed = StreamedClips(artifact, artifact, timeout=10)
    streamed.__dict__["audio"] = TINY_AUDIO
    (tmp_path / "audio/clip007.wav").unlink()
    assert streamed.read(np.array([6]))[1].item() == TINY_AUDIO.n_frames
    with pytest.raises(ValueError, match=r"clip007\.wav could be read when it was prepared.*No such file"):
        streamed.read(np.array([6, 7]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, Config]:
    """The same pre-training from a store and from the audio, with one bad file, in separate storages.

    Two workers; from the audio they are fed in several segments.
    """
    folder = tmp_path_factory.mktemp("recordings")
    table = write_table(folder, write_clips(folder, 120))
    (folder / "clip004.wav").write_bytes(b"no recording")
    runs, compute = {}, replace(TINY.compute, num_workers=2, data_workers=1, torch_threads=1, feed_windows=4)
    for kind in ("parquet", "none"):
        data = DataConfig(dataset="table", tables=(str(table),), shard_mb=0.1, store=kind)
        storage = str(tmp_path_factory.mktemp(kind))
        runs[kind] = replace(TINY, recipe="tiny", storage=storage, data=data, compute=compute)
        run_plan(runs[kind], "pretrain", open_storage(storage))
    return runs


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_pipeline_gives_the_same_and_stores_no_features(runs: dict[str, Config]) -> None:
    weights, quarantines, manifests = [], [], []
    for config in runs.values():
        storage = Path(config.storage) / "artifacts"
        (model,) = storage.glob("pretrain/*/model.safetensors")
        (prepared,) = (path.parent for path in storage.glob("prepare/*/done.json"))
        weights.append((model.parent.name, load_tensors(model.read_bytes())))
        quarantines.append((prepared / "quarantine.csv").read_text().splitlines()[1:])
        manifests.append(Folder(str(prepared)).read_json("manifest.json"))
    assert weights[0][0] == weights[1][0]
    assert all(torch.equal(value, weights[1][1][name]) for name, value in weights[0][1].items())
    assert quarantines[0] == quarantines[1]
    assert "clip004.wav" in quarantines[1][0]
    for name in ("clips", "hours", "quarantined", "splits", "statistics", "config_hash"):
        assert manifests[0][name] == manifests[1][name]
    spec = make_plan(runs["none"], "pretrain", open_storage(runs["none"].storage)).spec("pretrain")
    assert len(segments(spec, 0)) > 1
    kept = Path(runs["none"].storage)
    assert not (kept / "artifacts/shards").exists()
    assert all("log_mel" not in pq.read_schema(path).names for path in kept.glob(f"{CHECKED}/*.parquet"))


def long_run(source: StreamedClips, folder: Path) -> StageSpec:
    """A pre-training of more than a hundred windows."""
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=200))
    spec = make_spec(source, folder / "run", config=config)  # type: ignore[arg-type]
    assert spec.order().windows > 100
    return spec


@pytest.mark.ray
def test_ray_data_may_hold_some_windows_per_worker(streamed: StreamedClips, tmp_path: Path, ray_cluster: None) -> None:
    spec = long_run(streamed, tmp_path)
    window = read_window(spec.store, spec.order(), 0).values.nbytes
    limits = [read_segment(spec, 0, workers).context.execution_options.resource_limits for workers in (1, 2)]
    assert all(3 * workers * window <= one.object_store_memory <= 16 * window for workers, one in enumerate(limits, 1))


@pytest.mark.slow
@pytest.mark.ray
def test_a_slow_trainer_bounds_what_is_read_ahead(streamed: StreamedClips, tmp_path: Path, ray_cluster: None) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    spec = long_run(Watched(streamed.folder, streamed.shards, 10, str(seen)), tmp_path)
    (split,) = split_in_order(read_segment(spec, 0, workers=1), 1)
    trainer = ray.remote(num_cpus=0)(SlowTrainer).remote(split)
    try:
        for taken in (1, 2):
            ray.get(trainer.take.remote())
            time.sleep(3)
            assert taken <= len(list(seen.iterdir())) <= taken + 20
    finally:
        ray.kill(trainer)


class SlowTrainer:
    """A process like a training worker's: what Ray Data prefetches in it ends with it."""

    def __init__(self, split: ray.data.DataIterator) -> None:
        self.windows = windows_of(split, log_mel_layout(TINY_AUDIO))

    def take(self) -> None:
        next(self.windows)


class Watched(StreamedClips):
    """Writes a file for every window that is read."""

    def __init__(self, folder: Folder, shards: Folder, timeout: float, seen: str) -> None:
        super().__init__(folder, shards, timeout)
        self.__dict__["seen"] = seen

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "seen": self.__dict__["seen"]}

    def read(self, rows):  # type: ignore[no-untyped-def]
        (Path(self.__dict__["seen"]) / f"{time.time_ns()}").touch()
        return super().read(rows)
