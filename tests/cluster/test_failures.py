"""Failures of workers: their budget, their notes, the checkpoint at which they resume; without a worker group."""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
from pyarrow.fs import PyFileSystem

from raymae.cluster import train as module
from raymae.cluster.elastic import Workforce
from raymae.cluster.feed import InOrder, dataset_factory
from raymae.cluster.train import Failures, train
from raymae.config import ComputeConfig
from raymae.features.store import FeatureStore
from raymae.storage.commits import complete
from raymae.storage.folder import COMMITS, Folder
from raymae.storage.lease import LeaseLostError
from raymae.training.run_stage import build_task
from raymae.training.spec import StageSpec
from raymae.training.trainer import Trainer
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec


class WorkersFailedError(ray.train.TrainingFailedError):
    """What Ray Train raises when its budget is spent."""


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """What each worker group does, in order."""
    acts: list[Callable[[], None]] = []
    compute = replace(TINY.compute, max_failures=2)
    workforce = Workforce(compute, most=1, use_gpu=False, grows_from=float("inf"))
    monkeypatch.setattr(Workforce, "start", lambda self, deadline: 1)
    monkeypatch.setattr(Workforce, "wait", lambda self, deadline: 1)
    monkeypatch.setattr(module, "plan_workforce", lambda specs: workforce)
    monkeypatch.setattr(module, "fit", lambda *_: acts.pop(0)())
    yield acts
    assert not acts


def fail() -> None:
    raise WorkersFailedError("the workers died")


def commit(spec: StageSpec, step: int) -> Callable[[], None]:
    """Write a checkpoint and fail."""

    def act() -> None:
        spec.artifact.write_json(f"{COMMITS}/{step:09d}-x/commit.json", {})
        fail()

    return act


def test_a_checkpoint_refills_the_budget_of_failures(
    store: FeatureStore, tmp_path: Path, fits: list[Callable[[], None]]
) -> None:
    spec = make_spec(store, tmp_path / "run")
    fits += [commit(spec, 3), commit(spec, 6), commit(spec, 9), lambda: spec.artifact.finish({})]
    train([spec], Folder(str(tmp_path)))
    assert spec.artifact.is_done()


def test_without_progress_the_budget_ends(store: FeatureStore, tmp_path: Path, fits: list[Callable[[], None]]) -> None:
    spec = make_spec(store, tmp_path / "run")
    fits += [commit(spec, 3), fail]
    with pytest.raises(WorkersFailedError):
        train([spec], Folder(str(tmp_path)))


def test_a_lost_lease_ends_the_training_here(
    store: FeatureStore, tmp_path: Path, fits: list[Callable[[], None]]
) -> None:
    def lost() -> None:
        raise LeaseLostError("taken over")

    fits.append(lambda: None)
    with pytest.raises(LeaseLostError):
        train([make_spec(store, tmp_path / "run")], Folder(str(tmp_path)), check_leases=lost)


def test_a_note_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("the storage is away")

    monkeypatch.setattr(Folder, "write_bytes", refuse)
    workforce = Workforce(ComputeConfig(), most=1, use_gpu=False)
    Failures([Folder(str(tmp_path))], workforce).after_exception(None, {0: RuntimeError("why")})
    assert "why the workers failed can't be recorded (the storage is away): {0: RuntimeError('why')}" in caplog.text


@pytest.mark.parametrize("url", ["memory://bucket/run", "local"])
def test_ray_train_stores_where_everything_else_is(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    import ray.train.torch

    given: dict[str, Any] = {}

    class Trainer:
        def __init__(self, *_: Any, **named: Any) -> None:
            given.update(named)

        def fit(self) -> None:
            return

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(Workforce, "threads", lambda *_: 1)
    monkeypatch.setattr(Workforce, "scaling", lambda *_: None)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    storage = Folder(str(tmp_path) if url == "local" else url)
    workforce = Workforce(TINY.compute, most=1, use_gpu=False)
    module.fit([make_spec(store, tmp_path / "run")], storage, module.FOREVER, workforce, 1)
    config = given["run_config"]
    assert not given["datasets"], "workers read a store themselves"
    assert config.storage_path == f"{storage.path()}/ray"
    assert isinstance(config.storage_filesystem, PyFileSystem) == (url != "local")


def test_ctrl_c_is_an_interrupt_after_ray_train_has_handled_it() -> None:
    def handle(*_: Any) -> None:  # as Ray Train does
        sys.exit(0)

    def interrupted() -> None:
        with module.interrupts():
            signal.signal(signal.SIGINT, handle)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.ray
def test_workers_resume_where_the_controllers_data_begin(
    store: FeatureStore, tmp_path: Path, ray_cluster: None
) -> None:
    spec = make_spec(store, tmp_path / "run")
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact), spec.artifact)

    def write(step: int) -> None:
        trainer.progress.step = step
        trainer._commit()
        trainer.committer.wait()

    write(3)
    (first,) = complete(spec.artifact)
    dataset = dataset_factory(spec, 1)()
    write(6)  # a late checkpoint of workers that are gone
    (split,) = InOrder().configure({"pretrain": dataset}, 1, None, None)
    assert pickle.loads(pickle.dumps(split["pretrain"])).resumes_from == first
