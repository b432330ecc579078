"""Nothing that a job starts can be reached from another machine, and no credential is shown."""

from __future__ import annotations

import ipaddress
import os
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.benchmark.harness.memory import process_tree
from raymae.cli import main as cli
from raymae.cluster.connect import stay_local
from raymae.config import Config, DataConfig, TrackingConfig, redact
from raymae.features.store import FeatureStore
from raymae.pipeline.job import run_job
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec
from tests.support.audio_files import write_table
from tests.support.jobs import job_of
from tests.support.paths import ROOT
from tests.support.watching import is_loopback, listening

SECRET = "s3cr3t-Wort"
URL = f"nosuch://me:{SECRET}@host/x"

# Connections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "kept"), [(None, "0"), ("1", "1")])
def test_a_job_keeps_its_ray_on_loopback_unless_set_otherwise(
    own: str | None, kept: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.start(job_of(partial(run_job, "prepare")), ["small", "--data.tables", "nowhere.csv"])
    assert os.environ[name] == kept


def test_a_job_that_joins_another_ray_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    stay_local("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    stay_local()
    assert name not in os.environ


@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_of_ray_listens_beyond_loopback(ray_cluster: None) -> None:
    """Training workers are watched in test_pipeline.py."""
    import ray

    @ray.remote
    class Worker:
        def pid(self) -> int:
            return os.getpid()

    worker = Worker.remote()
    pid = ray.get(worker.pid.remote())
    pids = set(process_tree(os.getpid()))
    assert pid in pids
    addresses = listening(pids)
    assert len(addresses) > 4
    assert [address for address in addresses if not is_loopback(address)] == []
    ray.kill(worker)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_lone_training_worker_listens_nowhere_else(ray_cluster: None, tmp_path: Path) -> None:
    """It has no process group; several workers are watched in test_pipeline.py."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from raymae.cluster.process_group import process_group_config

    def look(config: dict[str, str]) -> None:
        import torch

        Path(config["folder"], "found").write_text("\n".join(map(str, listening({os.getpid()}))))
        assert not torch.distributed.is_initialized()

    TorchTrainer(
        look,
        train_loop_config={"folder": str(tmp_path)},
        torch_config=process_group_config(1, stall_minutes=15),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="alone", storage_path=str(tmp_path)),
    ).fit()
    addresses = [ipaddress.ip_address(line) for line in (tmp_path / "found").read_text().split()]
    assert addresses
    assert all(map(is_loopback, addresses))


# Credentials in messages ---------------------------------------------------------------------------------------------


@given(
    scheme=st.sampled_from(["s3", "https", "postgresql+psycopg2", "mlflow-artifacts"]),
    user=st.text("abcXYZ019._-", max_size=8),
    password=st.text("abcXYZ019._-@/:+=%!$", min_size=6, max_size=20),
    around=st.sampled_from(["{}", "can't read {}: denied", "('{}',)", "{} and http://host:5000/y"]),
)
def test_passwords_in_urls(scheme: str, user: str, password: str, around: str) -> None:
    password = f"<{password}>"
    redacted = redact(around.format(f"{scheme}://{user}:{password}@host/path"))
    assert password not in redacted
    assert "host/path" in redacted


@pytest.mark.parametrize(
    "parameter",
    [
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "AWSAccessKeyId",
        "sig",
        "X-Goog-Signature",
        "token",
    ],
)
def test_presigned_urls(parameter: str) -> None:
    url = f"https://bucket.host/a.csv?{parameter}={SECRET}&region=eu-1"
    assert redact(f"no {url}") == f"no https://bucket.host/a.csv?{parameter}=***&region=eu-1"


def test_arguments_of_ray_show_no_credentials(store: FeatureStore, tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=URL.replace("nosuch", "https"))
    config = Config(storage=URL, tracking=tracking, data=DataConfig(dataset="table", tables=(URL,)))
    folder = Folder(URL)
    spec = StageSpec(name="x", kind="pretrain", config=config, artifact=folder, store=FeatureStore(folder, folder))
    assert "nosuch://***@host/x" in str(spec)
    assert SECRET not in repr([spec, config, folder / "y"])


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("prepare", "--storage"),
        ("prepare", "--settings"),
        ("prepare", "--data.pool-tables"),
        ("prepare", "--data.split.file"),
        ("pretrain", "--pretrain.init-from"),
        ("pretrain", "--pretrain.augment.responses"),
        ("evaluate", f"--evaluate.compare {URL}"),
        ("predict", "--predict.output out.csv --predict.inputs a.wav --predict.model"),
        ("predict", "--predict.output out.csv --predict.inputs a.wav --predict.model models:/x --tracking.uri"),
    ],
)
def test_no_error_shows_a_password(
    job: Any,
    options: str,
    clips: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    table = write_table(Path(clips["path"][0].as_py()).parent, clips)
    monkeypatch.chdir(tmp_path)
    given = ["--data.dataset", "table", "--data.tables", str(table), *options.split(), URL]
    script = ROOT / "jobs" / f"{job}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *given])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    message = f"{end.value.code} {''.join(capfd.readouterr())}"
    assert "error" in message.lower()
    assert "Traceback" not in message
    assert SECRET not in message


def test_a_traceback_shows_no_password() -> None:
    def broken(config: Config) -> None:
        raise RuntimeError(f"lost {config.storage}")

    with pytest.raises(SystemExit) as end:
        cli.start(job_of(broken), ["--storage", URL])
    assert "in broken" in str(end.value.code)
    assert "RuntimeError: lost nosuch://***@host/x" in str(end.value.code)
    assert SECRET not in str(end.value.code)
