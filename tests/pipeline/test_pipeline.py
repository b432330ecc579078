"""The whole way through Ray Data, Ray Train with two workers, one of which is killed, and MLflow.

On recordings of two tones.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load as load_tensors

from raymae.benchmark.scale.recovery import Kill, kill_worker
from raymae.benchmark.studies.side_by_side import plan_of, run_side_by_side
from raymae.cluster import connect, train
from raymae.cluster.infer import ClusterReader
from raymae.cluster.prepare import prepare
from raymae.config import AugmentConfig, Config, ConsistencyConfig, DataConfig, PseudoLabelConfig, SweepConfig
from raymae.features.store import SHARDS, FeatureStore
from raymae.inference.labeller import Labeller
from raymae.inference.predictor import Predictor
from raymae.pipeline.evaluate import readings
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.make import make_plan
from raymae.pipeline.readers import choose_reader
from raymae.pipeline.run import run_plan
from raymae.serving.predict import find_classifier
from raymae.storage.events import read_events
from raymae.storage.folder import Folder, open_storage
from raymae.sweep.results import read_records
from raymae.sweep.run import run_sweep
from raymae.training.guards.deadline import FOREVER
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY, trails
from tests.support.watching import Watch, is_loopback

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
        pretrain=replace(TINY.pretrain, epochs=30, commit_minutes=0.001),
        finetune=replace(TINY.finetune, mixing_group=4),
        compute=replace(TINY.compute, num_workers=2, data_workers=1, parallel="ddp", torch_threads=1),
    )


@pytest.fixture(scope="module")
def watch() -> Watch:
    """What is seen of Ray's processes while the pipeline runs."""
    return Watch()


@pytest.fixture(scope="module")
def run(config: Config, ray_cluster: None, watch: Watch) -> tuple[dict[str, Any], Kill]:
    """Its pipeline, during whose pre-training a worker is killed."""
    storage = open_storage(config.storage)
    pretrain = make_plan(config, "pretrain", storage).nodes["pretrain"].artifact
    with watch, kill_worker(pretrain, step=40) as kills:
        result = run_plan(config, "register", storage)
    (kill,) = kills
    return result, kill


@pytest.fixture(scope="module")
def result(run: tuple[dict[str, Any], Kill]) -> dict[str, Any]:
    """The result of its pipeline."""
    return run[0]


def test_every_stage_ran_and_says_how_long(result: dict[str, Any]) -> None:
    trained = ["pretrain", "finetune", "cnn", "pseudo_label", "student", "consistency"]
    stages = ["prepare", *trained, "evaluate", "register"]
    assert list(result["stages"]) == stages
    assert not any(stage["reused"] for stage in result["stages"].values())
    assert all(stage["seconds"] >= stage["work_seconds"] > 0 for stage in result["stages"].values())


def test_the_easy_task_is_learned(result: dict[str, Any]) -> None:
    assert list(result["metrics"]) == ["svm", "svm_robust", "cnn", "finetune", "consistency", "student"]
    for model in ("svm", "finetune", "consistency", "student"):
        assert result["metrics"][model]["test_a"]["macro_accuracy"] > 0.85, model
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


def test_only_what_is_damaged_or_missing_is_computed_again(
    config: Config, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, storage=str(tmp_path))
    storage = open_storage(config.storage)
    prepared = Folder(run_plan(config, "prepare", storage)["stages"]["prepare"]["folder"])
    assert "log-mels of split train: mean" in capsys.readouterr().out
    store = FeatureStore(prepared, storage / SHARDS)
    shards = {name: store.shards.read_bytes(name) for name in store.shards.names()}
    clips, manifest = prepared.read_bytes("clips.parquet"), prepared.read_bytes("manifest.json")
    paths = [Path(store.shards.path(shard["name"])) for shard in store.manifest["shards"]]
    verify = replace(config, data=replace(config.data, verify=True))

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def run(asked: Config) -> int | None:
        stage = run_plan(asked, "prepare", storage)["stages"]["prepare"]
        assert {name: store.shards.read_bytes(name) for name in store.shards.names()} == shards
        assert (prepared.read_bytes("clips.parquet"), prepared.read_bytes("manifest.json")) == (clips, manifest)
        return None if stage["reused"] else prepared.result()["shards_computed"]

    assert prepared.result()["shards_computed"] == len(shards) > 3
    damage(paths[1])
    assert run(verify) == 1
    assert run(verify) == 0
    damage(paths[1])
    paths[2].unlink()
    with pytest.raises(ValueError, match="the same command computes it again"):
        store.read(np.arange(len(store)))
    assert run(config) == 2
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


def test_predict_finds_the_last_classifier(config: Config, result: dict[str, Any]) -> None:
    classifier = find_classifier(config, "--predict.model", None)
    assert classifier.url == result["stages"]["student"]["folder"]
    folder = Path(config.data.tables[0]).parent
    paths = [str(folder / f"clip00{number}.wav") for number in (0, 1)]
    rows = Labeller(Predictor(classifier), "file", 1)(paths).to_pylist()
    assert rows[0]["error"]
    assert rows[1]["scene_label"] == "high"


def test_a_sweep_runs_and_records_every_point_and_reuses_the_pipelines_stages(
    config: Config, result: dict[str, Any]
) -> None:
    space = SweepConfig(space=("pseudo_label.coverage=0.25,0.5",), stopping="none")
    found = run_sweep(replace(config, sweep=space, tracking=replace(config.tracking, experiment="sweep")))
    records = read_records(open_storage(found["sweep_folder"]))
    assert [one.status for one in records.values()] == ["finished"] * 2
    assert "undelivered" not in found
    assert found["best"]["score"] == max(one.score for one in records.values() if one.score is not None)
    for one in records.values():
        computed = {name for name, stage in one.stages.items() if not stage["reused"]}
        assert computed == ({"pseudo_label", "student"} if one.changes["pseudo_label.coverage"] == 0.25 else set())


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


def test_a_longer_table_computes_only_the_shards_that_it_adds(
    clips: pa.Table, tmp_path: Path, ray_cluster: None
) -> None:
    config = replace(TINY, data=DataConfig(shard_mb=0.1), compute=replace(TINY.compute, data_workers=1))
    root = Folder(str(tmp_path))
    given = make_store(tmp_path, clips.slice(0, 100), shard_mb=0.1)
    found = prepare(clips, root / "more", root / SHARDS, config, lambda _: None)
    assert found["shards_computed"] == 2
    assert found["shards"] == len(given.manifest["shards"]) + 1  # the last one of the shorter table was not full
    assert len(FeatureStore(root / "more", root / SHARDS)) == 120


def alone(spec: StageSpec, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a stage that a process trains without Ray."""
    torch.set_num_threads(1)
    spec = replace(spec, artifact=Folder(str(folder / "alone")))
    run_stage(spec, BareSession(spec.store, spec.artifact))
    return load_tensors(spec.artifact.read_bytes("model.safetensors"))


def test_the_killed_workers_resumed_from_the_last_checkpoint(config: Config, run: tuple[dict[str, Any], Kill]) -> None:
    spec, kill = make_plan(config, "pretrain", open_storage(config.storage)).spec("pretrain"), run[1]
    assert 0 < kill.committed <= kill.step < spec.order().steps
    events, expected = read_events(spec.artifact), trails(spec)
    again = [event["step"] for event in events if event["time"] > kill.time]
    assert min(again) > kill.committed, "a step before the checkpoint was repeated"
    assert all(event["trail"] == expected[event["step"]] for event in events)


def test_two_workers_compute_what_a_bare_process_does(config: Config, result: dict[str, Any], tmp_path: Path) -> None:
    spec = make_plan(config, "pretrain", open_storage(config.storage)).spec("pretrain")
    assert spec.artifact.result()["workers"] == 2
    found = load_tensors(spec.artifact.read_bytes("model.safetensors"))
    for name, value in alone(spec, tmp_path).items():  # the sums over the workers are taken in another order
        np.testing.assert_allclose(found[name], value, atol=2e-4)


def test_ray_exports_the_metrics_of_a_stage(result: dict[str, Any], watch: Watch) -> None:
    folder = Folder(result["stages"]["pretrain"]["folder"])
    shown = watch.metrics[Path(folder.url).name]
    expected = {"raymae_loss", "raymae_lr", "raymae_step", "raymae_clips_per_second", "raymae_data_wait_share"}
    assert shown.keys() >= expected
    assert shown["raymae_step"] == folder.result()["steps"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_listened_beyond_loopback(result: dict[str, Any], watch: Watch) -> None:
    # two groups of two, the group that replaced the killed one, and the CNN's only worker
    assert 6 <= sum(map(bool, watch.workers.values())) <= len(watch.workers) <= 7
    assert [address for address in watch.listeners if not is_loopback(address)] == []


@pytest.mark.slow
def test_two_sharded_workers_compute_what_a_bare_process_does(
    store: FeatureStore, tmp_path: Path, ray_cluster: None
) -> None:
    compute = replace(TINY.compute, num_workers=2, parallel="fsdp", torch_threads=1)
    config, artifact = replace(TINY, compute=compute), Folder(str(tmp_path / "ray"))
    spec = StageSpec(name="pretrain", kind="pretrain", config=config, artifact=artifact, store=store)
    train.train([spec], Folder(str(tmp_path)))
    assert spec.artifact.result()["workers"] == 2
    found = load_tensors(artifact.read_bytes("model.safetensors"))
    for name, value in alone(spec, tmp_path).items():
        np.testing.assert_allclose(found[name], value, atol=2e-4)


def test_a_stage_has_no_more_workers_than_mixing_groups(result: dict[str, Any]) -> None:
    trained = ("pretrain", "finetune", "cnn", "student", "consistency")
    workers = {name: Folder(result["stages"][name]["folder"]).result()["workers"] for name in trained}
    assert workers == dict.fromkeys(trained, 2) | {"cnn": 1}  # the step of 8 clips is one batch of its batch norm


def test_result_is_stored_with_redacted_settings(config: Config, result: dict[str, Any]) -> None:
    run_folder = Folder(result["run_folder"])
    assert run_folder.read_json("result.json")["metrics"] == result["metrics"]
    assert json.dumps(run_folder.read_json("config.json")["model"])


def test_actors_and_the_driver_read_the_same(config: Config, result: dict[str, Any]) -> None:
    plan = plan_of(config, open_storage(config.storage))
    rows, counted = np.arange(0, len(plan.store), 3), []
    here = choose_reader(plan, no_ray, no_bar, FOREVER)
    assert isinstance(here, InProcess), "the stages of this run were read in the driver"
    on_cluster = ClusterReader(plan.store, config.compute, lambda total: nullcontext(counted.append))
    for one, other in (
        (here.classify(rows, plan.classifiers), on_cluster.classify(rows, plan.classifiers)),
        (here.embed(rows, readings(plan)), on_cluster.embed(rows, readings(plan))),
    ):
        assert one[0].keys() == other[0].keys()
        for name, values in one[0].items():
            np.testing.assert_allclose(values, other[0][name], rtol=1e-4, atol=1e-5)
    assert sum(counted) == 2 * len(rows)


def no_ray() -> None:
    """Starts nothing."""
    raise AssertionError("the driver needs no Ray")


def no_bar(total: int) -> Any:
    """Shows nothing."""
    raise AssertionError("the driver shows no bar")
