"""MLflow on a real SQLite store: resumed runs, a registered model that reads audio, no secrets and no noise."""

from __future__ import annotations

import ast
import json
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sqlalchemy.engine import make_url

from raymae.config import Config, TrackingConfig, to_dict
from raymae.inference.classifier import write_classifier
from raymae.inference.predictor import Predictor
from raymae.models import build_classifier
from raymae.storage.folder import Folder, open_storage
from raymae.tracking.receiver import AwayError
from raymae.tracking.registry import REQUIREMENTS
from raymae.tracking.reporter import flat
from raymae.tracking.tracker import BATCH, KEY, KIND, MAX_PARAM, TRAINING, Tracker
from raymae.tracking.uri import experiment_page, sqlite_file, tracking_uri
from tests.support.audio_files import TINY_AUDIO, write_tone
from tests.support.training import TINY

NAMES = ["high", "low"]
P = [f"p_{name}" for name in NAMES]
"""The columns of their probabilities."""
CONFIG = TrackingConfig(registered_model="scenes")
ALIAS = "models:/scenes@candidate"
SECRET = "hunter2"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return open_storage(str(tmp_path_factory.mktemp("storage")))


@pytest.fixture(scope="module")
def tracker(storage: Folder) -> Iterator[Tracker]:
    """One SQLite store for all tests of this file: creating its tables takes seconds."""
    environment, path = dict(os.environ), list(sys.path)
    yield Tracker(CONFIG, storage)
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    sys.path[:] = path  # a loaded model adds its own code
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(autouse=True)
def _own_address(tracker: Tracker) -> None:
    """Undo what a test that opens another store does to MLflow's address of the process."""
    mlflow.set_tracking_uri(tracker.uri)


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("audio") / "tone.wav"
    write_tone(path, 440)
    return str(path)


def classifier(folder: Folder, seed: int = 0) -> Folder:
    """A tiny classifier whose predictions differ between recordings."""
    torch.manual_seed(seed)
    model = build_classifier(TINY_AUDIO, TINY.model, TINY.finetune, len(NAMES))
    torch.nn.init.normal_(model.head.weight)
    write_classifier(
        folder, model, class_names=NAMES, audio=TINY_AUDIO, model_config=TINY.model, finetune=TINY.finetune
    )
    return folder


@pytest.fixture(scope="module")
def registered(tracker: Tracker, storage: Folder) -> tuple[Folder, str, str]:
    """A registered classifier: its folder, model URI and version."""
    folder = classifier(storage / "first")
    run_id = tracker.run("registered", "pipeline")
    return folder, *tracker.register(
        run_id, folder, {"recipe": "tiny", "metrics": {"test": {"accuracy": 0.5}}}, None, "better *by far*"
    )


def history(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of all points of a metric, duplicates included."""
    found = tracker.client.get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def events(first: int, last: int, factor: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": step, "time": 1e9 + step, "metrics": {"loss": factor * step}} for step in range(first, last + 1)]


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_with_the_same_key_is_resumed(tracker: Tracker, storage: Folder) -> None:
    run_id = tracker.run("key", "first name", params={"a": "1"})
    tracker.finish(run_id, "FAILED")
    for one in (tracker, Tracker(CONFIG, storage)):
        assert one.run("key", "another name", params={"a": "2"}) == run_id
    run = tracker.client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1"}
    assert tracker.run("other key", "first name") != run_id


def test_a_run_keeps_its_first_end(tracker: Tracker) -> None:
    run_id = tracker.run("ends", "run")
    tracker.finish(run_id, "FAILED")
    tracker.finish(run_id, "FINISHED")
    assert tracker.client.get_run(run_id).info.status == "FAILED"


def test_runs_of_stages_are_children_of_their_pipeline(tracker: Tracker) -> None:
    parents = [tracker.run(f"pipeline {number}", "pipeline") for number in range(2)]
    children = [tracker.run("stage", "prepare", parent=parent) for parent in parents]
    assert len({*parents, *children}) == 4
    for parent, child in zip(parents, children, strict=True):
        assert tracker.client.get_run(child).data.tags["mlflow.parentRunId"] == parent
        assert tracker.run("stage", "prepare", parent=parent) == child


def test_many_and_long_parameters(tracker: Tracker) -> None:
    params = {f"p{number}": "x" * (MAX_PARAM + 1) if number == 7 else str(number) for number in range(250)}
    found = tracker.client.get_run(tracker.run("parameters", "run", params=params)).data.params
    assert found == {name: value[:MAX_PARAM] for name, value in params.items()}


def test_a_whole_configuration_becomes_parameters(tracker: Tracker) -> None:
    params = flat(to_dict(Config()))
    found = tracker.client.get_run(tracker.run("config", "run", params=params)).data.params
    assert found == params
    assert found["model.mask_ratio"] == "0.8"


def test_a_data_set_is_an_input_once(tracker: Tracker) -> None:
    run_id = tracker.run("data", "prepare")
    data = {
        "name": "rec/metadata.csv",
        "digest": "0123456789abcdef",
        "context": "training",
        "source_type": "local",
        "source": {"uri": "rec/metadata.csv"},
        "profile": {"num_rows": 3, "splits": {"train": {"clips": 3}}},
    }
    for one in (data, data, data | {"digest": "other"}):
        tracker.log_data(run_id, one)
    found = {one.dataset.digest: one for one in tracker.client.get_run(run_id).inputs.dataset_inputs}
    assert list(sorted(found)) == ["0123456789abcdef", "other"]
    first = found["0123456789abcdef"]
    assert (first.dataset.name, json.loads(first.dataset.profile)) == (data["name"], data["profile"])
    assert [(tag.key, tag.value) for tag in first.tags] == [("mlflow.data.context", "training")]
    assert mlflow.data.get_source(first.dataset).uri == "rec/metadata.csv"


def test_an_experiment_is_about_training_unless_it_says_otherwise(tracker: Tracker, storage: Folder) -> None:
    client = tracker.client
    client.create_experiment("older")
    client.create_experiment("other", tags={KIND: "genai_development"})
    kinds = {}
    for name in (CONFIG.experiment, "older", "other"):
        opened = Tracker(replace(CONFIG, experiment=name), storage)
        kinds[name] = client.get_experiment(opened.experiment_id).tags[KIND]
    assert kinds == {CONFIG.experiment: TRAINING, "older": TRAINING, "other": "genai_development"}


def test_the_page_of_training_runs() -> None:
    tail = "/#/experiments/3?workflowType=machine_learning"
    assert experiment_page(CONFIG, "3") == f"http://127.0.0.1:5000{tail}"
    assert experiment_page(replace(CONFIG, uri=f"https://me:{SECRET}@host/m/"), "3") == f"https://***@host/m{tail}"
    assert experiment_page(CONFIG, None).endswith("/#/experiments?workflowType=machine_learning")


# Metrics and files ---------------------------------------------------------------------------------------------------


def test_logged_steps_are_skipped(tracker: Tracker, storage: Folder) -> None:
    run_id = tracker.run("events", "pretrain")
    tracker.log_events(run_id, events(1, 3))
    tracker.log_events(run_id, events(2, 5, factor=7.0))
    assert history(tracker, run_id, "loss") == [(1, 1), (2, 2), (3, 3), (4, 28), (5, 35)]
    Tracker(CONFIG, storage).log_events(run_id, events(1, 6))  # a restarted driver
    assert history(tracker, run_id, "loss")[3:] == [(4, 28), (5, 35), (6, 6)]
    times = {metric.step: metric.timestamp for metric in tracker.client.get_metric_history(run_id, "loss")}
    assert times[3] == 1000 * (10**9 + 3)


def test_more_metrics_than_fit_a_request(tracker: Tracker) -> None:
    run_id = tracker.run("many", "pretrain")
    metrics = {f"m{number}": float(number) for number in range(BATCH // 4 + 1)}
    tracker.log_events(run_id, [{"step": step, "time": 1e9, "metrics": metrics} for step in range(5)])
    for name in ("m0", f"m{BATCH // 4}"):
        assert [step for step, _ in history(tracker, run_id, name)] == [0, 1, 2, 3, 4]
    tracker.log_events(run_id, [])


def test_final_metrics_of_a_stage(tracker: Tracker) -> None:
    run_id = tracker.run("numbers", "prepare")
    tracker.log_numbers(run_id, {"clips": 12.0, "loss": float("nan")})
    assert history(tracker, run_id, "stage/clips") == [(0, 12)]
    assert history(tracker, run_id, "stage/loss")[0][1] != history(tracker, run_id, "stage/loss")[0][1]


def test_files_of_a_run(tracker: Tracker, storage: Folder, tmp_path: Path) -> None:
    run_id = tracker.run("files", "evaluate")
    for name in ("report.md", "figures/curve.png"):
        tracker.log_bytes(run_id, name, f"\0{name}".encode())
        assert Path(tracker.client.download_artifacts(run_id, name, str(tmp_path))).read_bytes() == f"\0{name}".encode()
    assert str(storage.path("mlflow-artifacts")) in tracker.client.get_run(run_id).info.artifact_uri


# The registry --------------------------------------------------------------------------------------------------------


def test_the_same_classifier_is_the_same_version(tracker: Tracker, registered: tuple[Folder, str, str]) -> None:
    folder, model_uri, version = registered
    run_id = tracker.run("registered", "pipeline")
    assert tracker.register(run_id, folder, {}) == (model_uri, version) == ("models:/scenes/1", "1")
    assert tracker.client.get_run(run_id).info.status == "RUNNING"
    found = tracker.client.get_model_version_by_alias("scenes", "candidate")
    assert (str(found.version), found.run_id) == ("1", run_id)
    assert tracker.exists(model_uri)
    assert not tracker.exists("models:/scenes/99")
    assert not tracker.exists("models:/nothing/1")


def test_a_registered_model_has_its_metadata(registered: tuple[Folder, str, str]) -> None:
    info = mlflow.models.get_model_info(registered[1])
    assert info.metadata["class_names"] == NAMES
    assert info.metadata["audio"] == TINY_AUDIO.front_end()
    assert info.metadata["metrics"] == {"test": {"accuracy": 0.5}}
    assert info.signature.inputs.to_dict() == [{"type": "any", "required": True}]
    assert info.signature.outputs.input_names() == ["scene_label", "confidence", "error", *P]


def test_a_registered_model_has_an_example_that_it_takes(registered: tuple[Folder, str, str]) -> None:
    model = mlflow.pyfunc.load_model(registered[1])
    example = model.input_example
    found = model.predict(example)
    assert found["error"].tolist() == [None]
    assert found[P].iloc[0].sum() == pytest.approx(1, abs=1e-5)
    folder = Path(mlflow.artifacts.download_artifacts(registered[1]))
    served = json.loads((folder / "serving_input_example.json").read_text())
    again = pd.DataFrame(served["dataframe_split"]["data"], columns=served["dataframe_split"]["columns"])
    pd.testing.assert_frame_equal(model.predict(again), found)


def test_descriptions(tracker: Tracker, registered: tuple[Folder, str, str]) -> None:
    assert tracker.client.get_model_version("scenes", "1").description == "better *by far*"
    assert "Maps recordings" in tracker.client.get_registered_model("scenes").description


def test_the_alias_moves_to_another_classifier_and_back(
    tracker: Tracker,
    storage: Folder,
    registered: tuple[Folder, str, str],
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_id = tracker.run("registered", "pipeline")
    beside = {"README.md": "---\ntags: [a]\n---\n\n# Scenes\n", "evaluation.json": "{}"}
    _, version = tracker.register(run_id, classifier(storage / "second", seed=1), {}, {}, beside=beside)
    assert version == "2"
    assert tracker.client.get_model_version("scenes", "2").description == "# Scenes"
    folder = Path(tracker.download_classifier("models:/scenes/2"))
    assert {name: (folder / name).read_text() for name in beside} == beside
    assert capfd.readouterr() == ("", "")
    assert not [str(one.message) for one in recwarn]
    folders = [Predictor(tracker.download_classifier(uri)) for uri in (ALIAS, "models:/scenes/2", "models:/scenes/1")]
    weights = [one.classifier.model.head.weight for one in folders]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert tracker.register(run_id, registered[0], {})[1] == "1"
    assert str(tracker.client.get_model_version_by_alias("scenes", "candidate").version) == "1"


@pytest.mark.parametrize("kind", ["list", "path", "file"])
def test_the_model_reads_audio_files(
    tracker: Tracker, registered: tuple[Folder, str, str], wav: str, kind: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlflow.pyfunc.load_model(ALIAS)
        paths = [wav, wav + ".gone", wav]
        found = model.predict(paths if kind == "list" else pd.DataFrame({kind: paths}))
    expected = Predictor(tracker.download_classifier(ALIAS)).row(wav)
    assert list(found.columns) == ["scene_label", "confidence", "error", *P]
    for row in (0, 2):
        assert found["scene_label"][row] == expected["scene_label"]
        assert found[P].iloc[row].tolist() == pytest.approx([expected[name] for name in P], abs=1e-6)
    assert found["error"][1] == "No such file or directory"
    assert found.iloc[1].drop("error").isna().all()


def test_the_model_reads_bytes_and_waveforms(tracker: Tracker, registered: tuple[Folder, str, str], wav: str) -> None:
    model = mlflow.pyfunc.load_model(ALIAS)
    content = Path(wav).read_bytes()
    wave, rate = soundfile.read(wav, dtype="float32")
    expected = model.predict([wav])
    given = {"waveform": wave, "sample_rate": rate}
    inputs: list[Any] = [
        [content],
        content,
        wav,
        pd.Series([(wave, rate)]),
        pd.DataFrame({"audio": [(wave.tolist(), float(rate))]}),
        pd.DataFrame({"audio": [given], "more": [1]}),
        pd.DataFrame({"audio": [json.loads(json.dumps(given | {"waveform": wave.tolist()}))]}),
    ]
    for one in inputs:
        pd.testing.assert_frame_equal(model.predict(one), expected, atol=1e-5)
    mixed = model.predict(pd.Series([wav, content, (wave, rate), b"RIFF", (wave[:0], rate)], index=list("abcde")))
    assert mixed.index.tolist() == list("abcde")
    assert mixed["error"].isna().tolist() == [True, True, True, False, False]
    assert mixed["scene_label"].tolist()[:3] == expected["scene_label"].tolist() * 3


@pytest.mark.parametrize("kind", ["pairs in a list", "waveforms", "numbers", "nothing", "half a mapping", "no rate"])
def test_an_error_names_a_row_that_is_no_recording(registered: tuple[Folder, str, str], kind: str) -> None:
    wave = np.zeros(8000, np.float32)
    inputs: dict[str, Any] = {
        "pairs in a list": [(wave, 8000), (wave, 8000)],
        "waveforms": pd.DataFrame({"waveform": [wave], "sample_rate": [8000]}),
        "numbers": pd.Series([1.5, 2.5]),
        "nothing": pd.Series([None]),
        "half a mapping": pd.Series([{"waveform": wave}]),
        "no rate": pd.Series([(wave, "8 kHz")]),
    }
    with pytest.raises(ValueError, match=r"row 0 holds .*; expected the path of an audio file, its bytes, a pair"):
        mlflow.pyfunc.load_model(ALIAS).predict(inputs[kind])


@pytest.fixture(scope="module")
def elsewhere(
    tracker: Tracker, registered: tuple[Folder, str, str], wav: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Path], str]:
    """The model in a process of its own: its label of a recording, raymae's files that it imported, and its stderr."""
    code = (
        "import sys, mlflow\n"
        f"print(mlflow.pyfunc.load_model({ALIAS!r}).predict([{wav!r}])['scene_label'][0])\n"
        "import raymae.tracking.pyfunc_model\n"
        "print(*(one.__file__ for name, one in sys.modules.items() if f'{name}.'.startswith('raymae.')), sep='\\n')"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracker.uri, "OMP_NUM_THREADS": "1"}
    run, folder = [sys.executable, "-c", code], tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    label, *files = done.stdout.splitlines()
    return label, [Path(name) for name in files], done.stderr


def test_the_model_includes_its_code_and_loads_silently(
    tracker: Tracker, elsewhere: tuple[str, list[Path], str], wav: str
) -> None:
    label, files, stderr = elsewhere
    assert label == Predictor(tracker.download_classifier(ALIAS)).row(wav)["scene_label"]
    assert {"pyfunc_model.py", "predictor.py"} <= {path.name for path in files}
    assert all("mlflow-artifacts" in path.parts for path in files)
    assert stderr == ""


def test_what_the_model_imports_is_declared(elsewhere: tuple[str, list[Path], str]) -> None:
    """All imports, also inside functions, of the package's files that a loaded model imports."""
    imported: set[str] = set()
    for path in elsewhere[1]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {item.name.split(".")[0] for item in node.names}
    assert {"torch", "soundfile", "mlflow"} <= imported, "the check finds no imports"
    assert imported - set(sys.stdlib_module_names) - {"raymae", "mlflow"} <= set(REQUIREMENTS)


@pytest.mark.parametrize("uri", ["models:/nothing@candidate", "models:/scenes/99", "runs:/0123/model"])
def test_a_missing_model(tracker: Tracker, uri: str) -> None:
    with pytest.raises(ValueError, match=f"{uri} can't be read: ") as error:
        tracker.download_classifier(uri)
    assert "\n" not in str(error.value)


# Settings and secrets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": f"mysql+nothing://me:{SECRET}@host/x"}, r"MLflow at mysql\+nothing://\*\*\*@host/x can't be used"),
        ({"alias": "Latest"}, r"tracking\.alias = 'Latest'"),
        ({"alias": "v12"}, r"tracking\.alias = 'v12'"),
        ({"alias": "a b/c"}, "a b/c"),
        ({"registered_model": "team/scenes"}, "team/scenes"),
    ],
)
def test_wrong_settings_are_refused_at_the_start(
    tracker: Tracker, storage: Folder, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Tracker(replace(CONFIG, **changes), storage)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("host", "unknown"), [("127.0.0.1:1", False), ("no-such-host.invalid:5000", True)])
def test_a_server_that_is_down_is_not_a_wrong_setting(
    tracker: Tracker, storage: Folder, monkeypatch: pytest.MonkeyPatch, host: str, unknown: bool
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(AwayError, match=r"MLflow at http://\*\*\*@\S+ can't be used") as error:
        Tracker(replace(CONFIG, uri=f"http://me:{SECRET}@{host}"), storage)
    assert error.value.unknown_host == unknown
    assert SECRET not in str(error.value)


def test_a_deleted_experiment_is_named_at_the_start(tracker: Tracker, storage: Folder) -> None:
    number = tracker.client.create_experiment("gone")
    tracker.client.delete_experiment(number)
    restore = rf"its experiment 'gone' is deleted: restore it \(mlflow experiments restore --experiment-id {number}\)"
    with pytest.raises(ValueError, match=restore):
        Tracker(replace(CONFIG, experiment="gone"), storage)


def test_a_locked_database_is_waited_for(tracker: Tracker) -> None:
    error = tracker._contact_error(sqlite3.OperationalError("database is locked"), "locked")
    assert isinstance(error, AwayError)


def test_a_database_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.db").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everything
    with pytest.raises(ValueError, match=r"m\.db can't be written"):
        Tracker(replace(CONFIG, uri=f"sqlite:///{tmp_path}/m.db"), Folder(str(tmp_path)))


def test_two_jobs_may_meet_a_new_database(tmp_path: Path) -> None:
    code = (
        "from raymae.config import TrackingConfig; from raymae.storage.folder import Folder\n"
        "from raymae.tracking.tracker import Tracker\n"
        f"print(Tracker(TrackingConfig(), Folder({str(tmp_path)!r})).experiment_id)"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert found[0] == found[1] != ""


def test_a_job_that_is_killed_while_it_makes_the_database_leaves_none_behind(tmp_path: Path) -> None:
    code = (
        "from raymae.config import TrackingConfig\n"
        "from raymae.storage.folder import Folder\n"
        "from raymae.tracking.tracker import Tracker\n"
        f"Tracker(TrackingConfig(), Folder({str(tmp_path)!r}))"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size for path in tmp_path.glob("mlflow.db*") if path.suffix != ".lock"):
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert Tracker(TrackingConfig(), Folder(str(tmp_path))).experiment_id


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a b", "a&b=c"])
def test_the_database_is_in_a_storage_of_any_name(tmp_path: Path, name: str) -> None:
    storage = Folder(str(tmp_path / name))
    uri = tracking_uri(CONFIG, storage)
    assert make_url(uri).database == str(sqlite_file(uri)) == storage.path("mlflow.db")


def test_a_model_is_registered_where_the_run_is_though_another_store_was_opened_later(
    tracker: Tracker, storage: Folder, tmp_path: Path
) -> None:
    run_id = tracker.run("two stores", "pipeline")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/later.db")
    _, version = tracker.register(run_id, classifier(storage / "two", seed=3), {})
    assert tracker.client.get_model_version(CONFIG.registered_model, version).run_id == run_id


def test_a_request_with_a_lost_answer_makes_no_second_run(tracker: Tracker) -> None:
    for _ in range(2):
        tracker.client.create_run(tracker.experiment_id, tags={KEY: "late"})
    run_id = tracker.run("late", "late", params={"a": "1"})
    assert tracker._runs("late", None) == [run_id]
    assert tracker.client.get_run(run_id).data.params == {"a": "1"}


def test_credentials_never_reach_the_store(tracker: Tracker, storage: Folder) -> None:
    config = Config(
        storage=f"s3://me:{SECRET}@bucket/x?token={SECRET}",
        tracking=replace(CONFIG, uri=f"postgresql://me:{SECRET}@host/db"),
    )
    folder = Folder(f"memory://me:{SECRET}@bucket/classifier")
    params = flat(to_dict(config)) | {"raw": config.storage, "artifact": folder.url}
    run_id = tracker.run("secrets", "pipeline", params=params)
    _, version = tracker.register(run_id, classifier(folder, seed=2), {})
    assert tracker.register(run_id, folder, {})[1] == version
    assert tracker.client.get_run(run_id).data.params["storage"] == "s3://***@bucket/x?token=***"
    with sqlite3.connect(storage.path("mlflow.db")) as database:
        assert SECRET not in "\n".join(database.iterdump())
    for path in Path(storage.path("mlflow-artifacts")).rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_the_store_is_in_the_storage(tracker: Tracker, storage: Folder) -> None:
    assert tracker.uri == f"sqlite:///{storage.path('mlflow.db')}"
    assert tracker.client.get_experiment(tracker.experiment_id).artifact_location.endswith("/mlflow-artifacts")
    with pytest.raises(ValueError, match=r"needs --tracking\.uri"):
        Tracker(CONFIG, Folder("memory://bucket"))
