"""Transient errors are retried, others aren't; a full disk is reported and leaves what is stored."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raymae.features.store import SHARDS, FeatureStore
from raymae.storage import retry
from raymae.storage.commits import complete, latest_step
from raymae.storage.folder import Folder
from raymae.storage.retry import StorageFullError, is_transient, with_retries
from raymae.training.guards.deadline import Deadline
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.state.checkpoint import load_commit
from raymae.training.worker import BareSession
from tests.support.failing_files import FailingFiles
from tests.support.training import TINY, make_spec

OVER = Deadline(1.0, 0.0)
"""Deadline of a job that began long ago: every run stops at a checkpoint after its first step."""


@pytest.fixture(autouse=True)
def _failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    yield
    FailingFiles.failures, FailingFiles.fault = 0, None
    FailingFiles.calls.clear()
    FailingFiles.store.clear()


class Answer(Exception):  # noqa: N818  as object stores' clients have them
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (socket.gaierror(socket.EAI_AGAIN, ""), True),
        (Answer(503), True),
        (Answer(429), True),
        (socket.gaierror(socket.EAI_NONAME, ""), False),
        (Answer(403), False),
        (Answer(404), False),
        (FileNotFoundError(errno.ENOENT, ""), False),
        (PermissionError(errno.EACCES, ""), False),
        (OSError(errno.ENOSPC, ""), False),
        (ValueError(), False),
        (KeyError("x"), False),
    ],
)
def test_transient_errors(error: Exception, expected: bool) -> None:
    assert is_transient(error) == expected


def test_retries_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.05)
    calls = []

    def call() -> None:
        calls.append(0)
        raise TimeoutError("gone")

    with pytest.raises(TimeoutError, match="gone"):
        with_retries(call, "the test")
    assert len(calls) > 2
    assert [record.message for record in caplog.records] == ["the test fails temporarily (TimeoutError), retrying"]


def test_permanent_errors_are_not_retried() -> None:
    folder = Folder("failing://bucket/run")
    FailingFiles.failures, FailingFiles.fault = 1, lambda: PermissionError(errno.EACCES, "no")
    with pytest.raises(PermissionError):
        folder.write_bytes("file", b"")
    assert not folder.exists("file")


def test_every_operation_of_a_folder_is_retried(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raymae")
    FailingFiles.failures = 3
    folder = Folder("failing://me:hunter2@bucket/run")
    content = bytes(range(256)) * 10
    folder.write_bytes("a/file", content)
    assert folder.read_bytes("a/file") == content
    with folder.open("a/file") as file:
        assert file.read(10) == content[:10]
        file.seek(-7, os.SEEK_END)
        assert (file.read(), file.read()) == (content[-7:], b"")
        assert file.seek(5) == file.tell() == 5
        assert file.read(3) == content[5:8]
    assert (folder / "a").names() == ["file"]
    assert (folder / "a").sizes() == {"file": len(content)}
    assert list(folder.files()) == ["a/file"]
    folder.remove("a/file")
    assert not folder.exists("a/file")
    failed, worked = (caplog.text.count(text) for text in ("fails temporarily", "works again"))
    assert failed == worked > 4
    assert "hunter2" not in caplog.text


CONFIG = replace(
    TINY,
    pretrain=replace(TINY.pretrain, epochs=1, warmup_epochs=0, commit_minutes=1e-9, keep_commits=1),
    finetune=replace(TINY.finetune, epochs=1, warmup_epochs=0, commit_minutes=1e-9, keep_commits=1),
)
"""Stages of a few steps with a checkpoint after each."""


@pytest.fixture(scope="module")
def undisturbed(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageSpec]:
    """The stages, trained on storage that works."""
    folder = tmp_path_factory.mktemp("undisturbed")
    specs = {kind: make_spec(store, folder / kind, kind, CONFIG) for kind in ("pretrain", "finetune")}
    for spec in specs.values():
        run_stage(spec, BareSession(store, spec.artifact))
    return specs


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_stage_survives_a_storage_that_throttles(
    store: FeatureStore, undisturbed: dict[str, StageSpec], kind: str
) -> None:
    root = Folder("failing://bucket")
    for name in store.shards.names():
        (root / SHARDS).write_bytes(name, store.shards.read_bytes(name))
    for name in ("manifest.json", "clips.parquet"):
        (root / "prepare").write_bytes(name, store.folder.read_bytes(name))

    whole = undisturbed[kind]
    FailingFiles.failures = 2
    far = FeatureStore(root / "prepare", root / SHARDS)
    spec = replace(whole, artifact=root / "run", store=far)
    assert not run_stage(spec, BareSession(far, spec.artifact), OVER)
    assert latest_step(spec.artifact) == 1
    assert run_stage(spec, BareSession(far, spec.artifact))
    assert spec.artifact.read_bytes("model.safetensors") == whole.artifact.read_bytes("model.safetensors")
    assert {"read", "write", "list", "remove", "open", "part"} == {operation for operation, _ in FailingFiles.calls}
    with spec.artifact.open("trained_on.parquet") as file:
        assert pq.read_table(file).num_rows


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, free: int) -> Path:
    """Fill a disk up to some free bytes."""
    filler = folder / "filler"
    space = os.statvfs(folder)
    filler.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - free)))
    return filler


@pytest.mark.parametrize("free", [0, 40_000])
def test_a_full_disk_stops_the_run_and_nothing_is_lost(
    store: FeatureStore, undisturbed: dict[str, StageSpec], small_disk: Path, free: int
) -> None:
    """Full at once, or in the middle of a checkpoint."""
    whole = undisturbed["pretrain"]
    spec = make_spec(store, small_disk / "run", config=CONFIG)
    assert not run_stage(spec, BareSession(store, spec.artifact), OVER)
    before = load_commit(spec.artifact, complete(spec.artifact)[-1])

    filler = fill(small_disk, free)
    with pytest.raises(StorageFullError, match=rf"^{spec.artifact.url}\S* can't be written .*the same command again"):
        run_stage(spec, BareSession(store, spec.artifact))
    assert (spec.artifact / "commits").names() == complete(spec.artifact)
    assert latest_step(spec.artifact) == 1
    after = load_commit(spec.artifact, complete(spec.artifact)[-1])
    assert after[1] == before[1]
    assert all((after[0][part][name] == value).all() for part, one in before[0].items() for name, value in one.items())

    filler.unlink()
    assert run_stage(spec, BareSession(store, spec.artifact))
    assert spec.artifact.read_bytes("model.safetensors") == whole.artifact.read_bytes("model.safetensors")


def test_a_full_disk_on_a_worker_is_the_error_of_the_job() -> None:
    from raymae.cluster.errors import user_error

    message = "/data/run can't be written to (No space left on device): make room there"
    assert str(user_error([f"Traceback …\nraymae.storage.retry.StorageFullError: {message}\n"])) == message
    assert user_error(["Traceback …\nTypeError: a bug"]) is None
