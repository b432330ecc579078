"""A real MLflow server that hangs, dies and comes back: training continues, and everything arrives once."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.tracking import MlflowClient

from raymae.cli.main import is_unregistered
from raymae.cluster import connect
from raymae.config import Config, DataConfig, TrackingConfig
from raymae.datasets.clips import load
from raymae.pipeline.in_process import InProcess
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.run import run_plan
from raymae.storage.events import read_events
from raymae.storage.folder import Folder, open_storage
from raymae.tracking import delivery
from raymae.tracking.delivery import Delivery
from raymae.tracking.outbox import Outbox, server_id
from raymae.tracking.reporter import begin
from raymae.tracking.tracker import Tracker
from raymae.training import figures
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession
from tests.support.audio_files import make_store, write_clips, write_table
from tests.support.training import TINY

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1500)]

PATIENCE = 300.0
SECRET = "hunter2"
STAGE = "artifacts/pretrain/tracked"


class Server:
    """`mlflow server` on a port of its own, with SQLite and artifacts that pass through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        files = ["--artifacts-destination", str(self.folder / "files"), "--workers", "1"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *stores, *files], cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        until(self.is_healthy)

    def is_healthy(self) -> bool:
        """Whether it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def send(self, what: signal.Signals) -> None:
        """Send a signal to the server and its workers: their own process group."""
        assert self.process is not None
        os.killpg(self.process.pid, what)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@dataclass
class Story:
    """The results of the whole scenario."""

    config: Config
    storage: Folder
    client: MlflowClient
    events: list[dict[str, Any]]
    """The events of the training."""
    outbox: Outbox
    """Of the run that was tracked through the outages."""
    waiting: int
    """Files of entries that its job left pending."""
    first: dict[str, Any]
    """The result of a pipeline while the server was gone."""
    second: dict[str, Any]
    """The same command when it was back."""
    log: str


class WithActions(BareSession):
    """Calls functions after some steps."""

    def __init__(self, spec: StageSpec, then: dict[int, Callable[[], Any]]) -> None:
        super().__init__(spec.store, spec.artifact)
        self.then = then

    def report(self, event: dict[str, Any]) -> None:
        """Write the event, then call the function of its step."""
        super().report(event)
        self.then.get(event["step"], lambda: None)()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The scenario, run once for all tests of this file: it starts the server twice."""
    environment, path = dict(os.environ), list(sys.path)
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    os.environ |= {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET}
    server = Server(tmp_path_factory.mktemp("server"))
    patch = pytest.MonkeyPatch()
    patch.setattr(delivery, "POLL_SECONDS", 0.05)
    patch.setattr(delivery, "LONGEST_DELAY", 1.0)
    patch.setattr(figures, "DRAW_SECONDS", 0.0)
    patch.setattr(connect, "start_ray", lambda compute: None)
    try:
        with LogFile(tmp_path_factory.mktemp("log") / "log") as log:
            yield tell_story(server, tmp_path_factory.mktemp("storage"), log)
    finally:
        server.kill()
        patch.undo()
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)


class LogFile:
    """Everything that is logged while the block runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.handler = logging.FileHandler(self.path)
        logging.getLogger().addHandler(self.handler)
        logging.getLogger("raymae").setLevel(logging.INFO)
        return self.path

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()


def tell_story(server: Server, root: Path, log: Path) -> Story:
    """A training whose server hangs, comes back and dies; a pipeline without a server; the same when it is back."""
    storage = open_storage(str(root / "storage"))
    config = finished_but_for_registration(server.uri, root, storage)
    server.start()
    uri = server.uri.replace("//", f"//me:{SECRET}@")
    tracking = replace(config.tracking, uri=uri)
    outbox = Outbox(storage / "runs/tracked", server_id(config.tracking, server.uri))
    sender = Delivery(outbox, storage, lambda: Tracker(tracking, storage))
    outbox.write(begin("", "tracked", "tracked", {"storage": f"s3://me:{SECRET}@bucket/x"}, {}))
    sender.start()
    outbox.write(begin("pretrain", "tracked-pretrain", "pretrain", {}, {}, STAGE))
    train = replace(TINY.pretrain, epochs=12, report_steps=1, commit_minutes=1e-9)
    store = Plan(config, load(config.data, None), storage, "register").store
    tracked = replace(config, pretrain=train)
    spec = StageSpec(name="pretrain", kind="pretrain", config=tracked, artifact=storage / STAGE, store=store)
    then = {
        3: lambda: until(lambda: bool(sender._logged_steps)),
        4: lambda: server.send(signal.SIGSTOP),
        6: lambda: until(lambda: sender.away_since is not None),
        8: lambda: server.send(signal.SIGCONT),
        9: lambda: until(lambda: sender.away_since is None and max(sender._logged_steps.values(), default=0) > 5),
        10: server.kill,
        12: lambda: until(lambda: sender.away_since is not None),
    }
    assert spec.order().steps > 14
    run_stage(spec, WithActions(spec, then))
    tell = {"do": "tell", "run": "pretrain", "artifact": STAGE, "numbers": {"stage/": {"seconds": 1.5}}}
    files = {"files": [f"figures/{name}" for name in (spec.artifact / "figures").names()]}
    outbox.write(tell | files, {"do": "finish", "run": "pretrain", "status": "FINISHED"})
    outbox.write({"do": "finish", "run": "", "status": "FINISHED"})
    waiting = sender.close(0)
    first = run_plan(config, "register", storage)
    server.start()
    second = run_plan(config, "register", storage)
    events = read_events(spec.artifact)
    return Story(config, storage, MlflowClient(server.uri), events, outbox, waiting, first, second, log.read_text())


def finished_but_for_registration(uri: str, root: Path, storage: Folder) -> Config:
    """The settings of a pipeline of which all stages but the last are finished, without Ray."""
    torch.set_num_threads(1)
    folder = root / "recordings"
    folder.mkdir()
    config = replace(
        TINY,
        recipe="tiny",
        unlabelled=(),
        storage=storage.url,
        data=DataConfig(dataset="table", tables=(str(write_table(folder, write_clips(folder, 60))),)),
        pretrain=replace(TINY.pretrain, epochs=2, probe_clips=0),
        finetune=replace(TINY.finetune, epochs=6),
        evaluate=replace(TINY.evaluate, baselines=(), probe_clips=0),
        tracking=TrackingConfig(uri=uri, registered_model="scenes", patience_minutes=0.02),
    )
    plan = Plan(config, load(config.data, None), storage, "register")
    store = make_store(Path(storage.path()), plan.clips)
    sizes = store.shards.sizes()
    shards = [{**shard, "size": sizes[shard["name"]]} for shard in store.manifest["shards"]]
    store.folder.write_json("manifest.json", {**store.manifest, "shards": shards})
    store.folder.finish({})
    os.rename(store.folder.path(), plan.nodes["prepare"].artifact.path())
    maker = InProcess(Plan(config, plan.clips, storage, "register"))
    for name in ("pretrain", "finetune", "evaluate"):
        assert maker.make(maker.plan.nodes[name])
    return config


def runs(story: Story) -> dict[str, Any]:
    """Every run of the experiment by its key, each there once."""
    experiment = story.client.get_experiment_by_name(story.config.tracking.experiment)
    found = story.client.search_runs([experiment.experiment_id])
    by_key = {run.data.tags["raymae.key"]: run for run in found}
    assert len(by_key) == len(found)
    return by_key


def test_every_step_arrived_once_with_its_time(story: Story) -> None:
    assert story.waiting > 0
    run = runs(story)["tracked-pretrain"]
    assert [event["step"] for event in story.events] == list(range(1, len(story.events) + 1))
    for name in ("loss", "lr", "clips_per_second", "data_wait_share"):
        found = story.client.get_metric_history(run.info.run_id, name)
        assert sorted((one.step, one.timestamp, one.value) for one in found) == [
            (event["step"], int(1000 * event["time"]), event["metrics"][name]) for event in story.events
        ]


def test_runs_are_nested_and_have_their_times(story: Story) -> None:
    found = runs(story)
    parent, child = found["tracked"], found["tracked-pretrain"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    times = {(entry["do"], entry["run"]): entry["time"] for _, entries in story.outbox.entries() for entry in entries}
    for run, name in ((parent, ""), (child, "pretrain")):
        assert run.info.status == "FINISHED"
        assert run.info.start_time == int(1000 * times["begin", name])
        assert run.info.end_time == int(1000 * times["finish", name])
    (seconds,) = story.client.get_metric_history(child.info.run_id, "stage/seconds")
    assert (seconds.value, seconds.timestamp) == (1.5, int(1000 * times["tell", "pretrain"]))


def test_figures_pass_through_the_server(story: Story, tmp_path: Path) -> None:
    run_id = runs(story)["tracked-pretrain"].info.run_id
    names = {f"figures/{name}" for name in (story.storage / STAGE / "figures").names()}
    assert {file.path for file in story.client.list_artifacts(run_id, "figures")} == names
    path = story.client.download_artifacts(run_id, "figures/learning_curves.png", str(tmp_path))
    assert Path(path).read_bytes() == (story.storage / STAGE).read_bytes("figures/learning_curves.png")


def test_a_pipeline_without_its_server_ends_with_its_results(story: Story) -> None:
    assert story.first["metrics"] == story.second["metrics"]
    assert "the same command registers the model" in story.first["undelivered"]
    assert is_unregistered(story.first)
    assert not is_unregistered(story.second)
    assert "undelivered" not in story.second
    assert "model_uri" not in story.first


def test_the_same_command_registers_once_when_the_server_is_back(story: Story) -> None:
    versions = story.client.search_model_versions("name='scenes'")
    assert [f"models:/scenes/{one.version}" for one in versions] == [story.second["model_uri"]]
    assert story.client.get_model_version_by_alias("scenes", "candidate").version == versions[0].version
    parents = [run for run in runs(story).values() if run.info.run_name == "tiny-pipeline"]
    assert [run.info.run_id for run in parents] == [story.second["mlflow_run_id"]]
    assert parents[0].info.status == "FINISHED"
    models = story.client.search_logged_models([parents[0].info.experiment_id])
    assert len(models) == 1


def test_the_version_has_its_tags(story: Story) -> None:
    (version,) = story.client.search_model_versions("name='scenes'")
    split = Folder(story.second["run_folder"]).read_json("split.json")
    assert json.loads(version.tags["class_names"]) == ["high", "low"]
    assert json.loads(version.tags["front_end"])["n_mels"] == TINY.audio.n_mels
    assert (version.tags["recipe"], version.tags["split_hash"]) == ("tiny", split["hash"])
    scores = story.second["metrics"]["finetune"]["test_a"]
    assert float(version.tags["test_a/macro_accuracy"]) == pytest.approx(scores["macro_accuracy"], rel=1e-5)
    assert version.tags["model"] == "finetune"


def test_the_model_comes_back_through_the_server(story: Story) -> None:
    mlflow.set_tracking_uri(story.config.tracking.uri)
    path = str(Path(story.config.data.tables[0]).parent / "clip001.wav")
    assert mlflow.pyfunc.load_model("models:/scenes@candidate").predict([path])["scene_label"].tolist() == ["high"]


def test_the_log_has_every_outage_and_no_secret(story: Story) -> None:
    assert story.log.count("nothing can be delivered to MLflow for now") == 3
    assert story.log.count("MLflow answers again after") == 1
    assert "delivered to MLflow what" in story.log
    assert SECRET not in story.log
    for path in Path(story.storage.path()).rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    for run in runs(story).values():
        assert SECRET not in str(run.to_dictionary())
