"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest

from raymae.cluster.connect import stay_local
from raymae.features.store import FeatureStore
from tests.support.audio_files import make_store, write_clips

# hundreds of processes import these modules: compile them once
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
stay_local()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores: threads of torch would wait for one
os.environ.setdefault("MPLBACKEND", "Agg")
SECRETS = {"AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests", "MLFLOW_TRACKING_PASSWORD": "and-a-password-of-theirs"}
"""In the environment of every job that a test of Ray runs."""
# a busy machine is slow, not wrong
hypothesis.settings.register_profile(
    "raymae", max_examples=50, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("raymae")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A test module runs in one of the processes: what its tests share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    return LoadScopeScheduling(config, log)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """The training loop has the processor flush denormal floats to zero, with which hypothesis draws no floats."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """120 clips of two easy classes."""
    return write_clips(tmp_path_factory.mktemp("clips"), 120)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, clips: pa.Table) -> FeatureStore:
    """Their feature store."""
    return make_store(tmp_path_factory.mktemp("store"), clips)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' own Ray, with its own temporary folder; ended by its handle.

    At the end, no file that it and the jobs of all tests have written may hold a secret of their environment.
    """
    import ray

    from raymae.cluster.connect import start_ray
    from raymae.config import ComputeConfig

    os.environ.update(SECRETS)
    # a node that dies is noticed after some seconds instead of half a minute
    os.environ.update({"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8"})
    # nobody announces the preemption of this machine: one process fewer in each group of workers
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    folder = Path("/tmp") / f"raymae-{os.getpid()}"  # short: Ray's socket names have a limit of 107 characters
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(folder), logging_level="warning")
    start_ray(ComputeConfig())
    yield
    ray.shutdown()
    written = [*folder.glob("session_2*/**/*"), *tmp_path_factory.getbasetemp().rglob("*")]
    assert written
    for path in written:
        if path.is_file() and path.stat().st_size < 2**24:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in SECRETS.values()), f"{path} holds a secret"
