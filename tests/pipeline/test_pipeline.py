"""The whole way through Ray Data, Ray Train and MLflow, on recordings of two tones."""

from __future__ import annotations

import csv
import json
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load as load_tensors

from raymae.benchmark.studies.side_by_side import plan_of, run_side_by_side
from raymae.cluster import connect, train
from raymae.cluster.prepare import prepare
from raymae.config import AugmentConfig, Config, ConsistencyConfig, DataConfig, PredictConfig, PseudoLabelConfig
from raymae.features.store import SHARDS, FeatureStore
from raymae.pipeline.run import run_plan
from raymae.serving.predict import label_files
from raymae.storage.events import read_events
from raymae.storage.folder import Folder, open_storage
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A tiny run on 120 recordings, one of them empty."""
    folder = tmp_path_factory.mktemp("recordings")
    table = write_table(folder, write_clips(folder, 120))
    (folder / "clip000.wav").write_bytes(b"")
    return replace(
        TINY,
        recipe="tiny",
        storage=str(tmp_path_factory.mktemp("storage")),
        data=DataConfig(dataset="table", tables=(str(table),), shard_mb=0.1),
        pseudo_label=PseudoLabelConfig(confidence_threshold=None, coverage=0.5),
        unlabelled=("consistency", "pseudo_labels"),
        consistency=ConsistencyConfig(epochs=5, ratio=2, strong=AugmentConfig(freq_mask_param=4, time_mask_param=16)),
    )


@pytest.fixture(scope="module")
def result(config: Config, ray_cluster: None) -> dict[str, Any]:
    """The result of its pipeline."""
    return run_plan(config, "register", open_storage(config.storage))


def test_every_stage_ran_and_says_how_long(result: dict[str, Any]) -> None:
    trained = ["pretrain", "finetune", "cnn", "pseudo_label", "student", "consistency"]
    stages = ["prepare", *trained, "evaluate", "register"]
    assert list(result["stages"]) == stages
    assert not any(stage["reused"] for stage in result["stages"].values())
    assert all(stage["seconds"] >= stage["work_seconds"] > 0 for stage in result["stages"].values())


def test_the_easy_task_is_learned(result: dict[str, Any]) -> None:
    assert list(result["metrics"]) == ["svm", "svm_robust", "cnn", "finetune", "consistency", "student"]
    for model in ("svm", "finetune", "consistency", "student"):
        assert result["metrics"][model]["test_a"]["macro_accuracy"] > 0.9
    assert {split["clips"] for split in result["metrics"]["student"].values()} == {24}


def test_runs_side_by_side_go_on_from_what_stands(config: Config, result: dict[str, Any]) -> None:
    other = replace(config, finetune=replace(config.finetune, label_smoothing=0.1), unlabelled=())
    storage = open_storage(config.storage)
    found = dict(run_side_by_side([config, other], ["one", "other"], storage))
    assert found[0]["metrics"] == result["metrics"]
    assert list(found[1]["metrics"]) == ["svm", "svm_robust", "cnn", "finetune"]
    assert found[1]["metrics"]["finetune"]["test_a"]["macro_accuracy"] > 0.9
    plan = plan_of(other, storage)
    assert all(node.reused for node in plan.nodes.values())
    assert plan.nodes["pretrain"].artifact.url == result["stages"]["pretrain"]["folder"]


def test_the_bad_file_is_quarantined(result: dict[str, Any]) -> None:
    prepared = Folder(result["stages"]["prepare"]["folder"])
    assert prepared.result()["quarantined"] == 1
    assert "clip000.wav" in prepared.read_bytes("quarantine.csv").decode()


def test_pseudo_labels_have_provenance(result: dict[str, Any]) -> None:
    with Folder(result["stages"]["pseudo_label"]["folder"]).open("pseudo_labels.parquet") as file:
        table = pq.read_table(file)
    assert 0 < sum(table["accepted"].to_pylist()) < len(table) == 24
    assert set(table["pseudo_label"].to_pylist()) <= {"high", "low"}
    assert all(table["teacher"].to_pylist())
    folder = Folder(result["stages"]["pseudo_label"]["folder"])
    assert folder.result()["calibrated_on"] == "val"
    assert {"report.md", "report.json"} <= set(folder.names())


def test_a_second_run_reuses_everything_without_ray(
    config: Config, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "start_ray", lambda compute: pytest.fail("Ray was started"))
    again = run_plan(config, "register", open_storage(config.storage))
    assert all(stage["reused"] for stage in again["stages"].values())
    assert again["metrics"] == result["metrics"]
    assert again["model_uri"] == result["model_uri"]


def test_only_the_damaged_shard_is_computed_again(
    config: Config, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, storage=str(tmp_path))
    storage = open_storage(config.storage)
    prepared = Folder(run_plan(config, "prepare", storage)["stages"]["prepare"]["folder"])
    assert "log-mels of split train: mean" in capsys.readouterr().out
    store = FeatureStore(prepared, storage / SHARDS)
    shards = {name: store.shards.read_bytes(name) for name in store.shards.names()}
    clips, manifest = prepared.read_bytes("clips.parquet"), prepared.read_bytes("manifest.json")
    path = Path(store.shards.path(store.manifest["shards"][1]["name"]))
    verify = replace(config, data=replace(config.data, verify=True))

    def damage() -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def run(asked: Config) -> int | None:
        stage = run_plan(asked, "prepare", storage)["stages"]["prepare"]
        assert {name: store.shards.read_bytes(name) for name in store.shards.names()} == shards
        assert (prepared.read_bytes("clips.parquet"), prepared.read_bytes("manifest.json")) == (clips, manifest)
        return None if stage["reused"] else prepared.result()["shards_computed"]

    assert prepared.result()["shards_computed"] == len(shards) > 3
    damage()
    assert run(verify) == 1
    assert run(verify) == 0
    damage()
    with pytest.raises(ValueError, match="the same command computes it again"):
        store.read(np.arange(len(store)))
    assert run(config) == 1
    path.unlink()
    assert run(config) == 1
    assert run(config) is None


def test_other_settings_repeat_only_what_follows_from_them(config: Config, result: dict[str, Any]) -> None:
    other = replace(config, pseudo_label=PseudoLabelConfig(confidence_threshold=None, coverage=0.25), dry_run=True)
    plan = run_plan(other, "register", open_storage(config.storage))["plan"]
    assert [name for name, reused in plan.items() if not reused] == ["pseudo_label", "student", "evaluate", "register"]


def test_the_registered_model_predicts_a_raw_file(config: Config, result: dict[str, Any]) -> None:
    import mlflow

    path = str(Path(config.data.tables[0]).parent / "clip001.wav")
    storage = open_storage(config.storage)
    from raymae.tracking.tracker import Tracker

    mlflow.set_tracking_uri(Tracker(config.tracking, storage).uri)
    model = mlflow.pyfunc.load_model(f"models:/{config.tracking.registered_model}@{config.tracking.alias}")
    assert model.predict([path])["scene_label"].tolist() == ["high"]


def test_predict_labels_every_file_once(config: Config, result: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(config.data.tables[0]).parent
    output = tmp_path / "scenes.csv"
    counts = label_files(replace(config, predict=PredictConfig(inputs=(str(folder),), output=str(output))))
    assert (counts["files"], counts["failed"]) == (120, 1)
    with open(output) as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert len(rows) == 120
    assert rows["clip000.wav"]["error"]
    assert rows["clip001.wav"]["scene_label"] == "high"


def test_mlflow_has_a_run_per_stage_below_the_pipelines(config: Config, result: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    from raymae.tracking.tracker import Tracker

    client = MlflowClient(Tracker(config.tracking, open_storage(config.storage)).uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run not in parents} == {parents[0].info.run_id}
    assert all(run.info.status == "FINISHED" for run in runs)
    pretrain = next(run for run in runs if run.info.run_name == "pretrain")
    losses = client.get_metric_history(pretrain.info.run_id, "loss")
    events = read_events(Folder(result["stages"]["pretrain"]["folder"]))
    assert [metric.step for metric in losses] == [event["step"] for event in events]


def test_prepare_computes_only_what_is_missing(clips: pa.Table, tmp_path: Path, ray_cluster: None) -> None:
    config = replace(TINY, data=DataConfig(shard_mb=0.1))
    root = Folder(str(tmp_path))

    def run(name: str, rows: pa.Table) -> dict[str, Any]:
        return prepare(rows, root / name, root / SHARDS, config, lambda _: None)

    first = run("first", clips.slice(0, 100))
    assert first["shards_computed"] == first["shards"] == 7
    shard = (root / SHARDS).names()[0]
    (tmp_path / SHARDS / shard).write_bytes(b"damaged")
    assert run("again", clips.slice(0, 100))["shards_computed"] == 1
    assert run("more", clips)["shards_computed"] == 2
    assert len(FeatureStore(root / "more", root / SHARDS)) == 120


@pytest.mark.parametrize(("workers", "parallel"), [(2, "ddp"), pytest.param(2, "fsdp", marks=pytest.mark.slow)])
def test_ray_train_computes_what_a_bare_process_does(
    store: FeatureStore, tmp_path: Path, ray_cluster: None, workers: int, parallel: Literal["ddp", "fsdp"]
) -> None:
    torch.set_num_threads(1)
    compute = replace(TINY.compute, num_workers=workers, parallel=parallel, torch_threads=1, feed_windows=4)
    specs = {
        name: StageSpec(
            name="pretrain",
            kind="pretrain",
            config=replace(TINY, compute=compute),
            artifact=Folder(str(tmp_path / name)),
            store=store,
        )
        for name in ("bare", "ray")
    }
    run_stage(specs["bare"], BareSession(store, specs["bare"].artifact))
    train.train([specs["ray"]], Folder(str(tmp_path)))
    bare, ray = (load_tensors(specs[name].artifact.read_bytes("model.safetensors")) for name in ("bare", "ray"))
    for name, value in bare.items():
        if workers == 1:
            assert torch.equal(value, ray[name]), name
        else:  # the sums over the workers are taken in another order
            np.testing.assert_allclose(ray[name], value, atol=2e-4)
    assert specs["ray"].artifact.result()["workers"] == workers
    if parallel == "ddp":
        shown = exported_metrics('run="ray"')
        expected = {"raymae_loss", "raymae_lr", "raymae_step", "raymae_clips_per_second", "raymae_data_wait_share"}
        assert {name.removeprefix("ray_") for name in shown} >= expected
        assert shown["ray_raymae_step"] == specs["ray"].artifact.result()["steps"]


def exported_metrics(tag: str) -> dict[str, float]:
    """What the nodes export for Prometheus with a tag, once it is there: Ray's agents pass it on every few seconds."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        found = {}
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=30) as answer:
                for line in answer.read().decode().splitlines():
                    if "raymae_" in line and tag in line:
                        found[line.partition("{")[0]] = float(line.rpartition(" ")[2])
        if found:
            return found
        time.sleep(1)
    raise TimeoutError(f"no metric of raymae with {tag}")


def test_workers_need_equal_shares_of_a_step(store: FeatureStore, tmp_path: Path, ray_cluster: None) -> None:
    config = replace(
        TINY,
        pretrain=replace(TINY.pretrain, micro_batch_size=TINY.pretrain.global_batch_size),
        compute=replace(TINY.compute, num_workers=2),
    )
    artifact = Folder(str(tmp_path / "run"))
    spec = StageSpec(name="pretrain", kind="pretrain", config=config, artifact=artifact, store=store)
    with pytest.raises(ValueError, match="micro_batch_size = 1 must be a multiple of the 2 workers"):
        train.train([spec], Folder(str(tmp_path)))


def test_damage_is_named_in_one_line(tmp_path: Path, clips: pa.Table, ray_cluster: None) -> None:
    store = make_store(tmp_path, clips)
    for name in store.shards.names():
        path = Path(store.shards.path(name))
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    config = replace(TINY, compute=replace(TINY.compute, max_failures=0))
    artifact = Folder(str(tmp_path / "run"))
    spec = StageSpec(name="pretrain", kind="pretrain", config=config, artifact=artifact, store=store)
    with pytest.raises(ValueError, match=r"^shard .* is damaged .* computes it again$"):
        train.train([spec], Folder(str(tmp_path)))


def test_result_is_stored_with_redacted_settings(config: Config, result: dict[str, Any]) -> None:
    run_folder = Folder(result["run_folder"])
    assert run_folder.read_json("result.json")["metrics"] == result["metrics"]
    assert json.dumps(run_folder.read_json("config.json")["model"])
