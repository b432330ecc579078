"""A storage that a user has to mend: one line that names the URL and what would be right, and nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.config import conf

from raymae.benchmark.harness.s3_server import CREDENTIALS, S3, s3_server
from raymae.cluster.errors import user_error
from raymae.features.store import FeatureStore
from raymae.serving.output import open_output
from raymae.storage import refusal, retry
from raymae.storage.commits import complete
from raymae.storage.folder import Folder, open_storage
from raymae.storage.refusal import NoBucketError, StorageAwayError, StorageForbiddenError, explained
from raymae.storage.retry import StorageError, StorageFullError
from raymae.training.run_stage import run_stage
from raymae.training.state.checkpoint import Committer, load_commit
from raymae.training.worker import BareSession
from tests.support.training import TINY, make_spec

RIGHT = {
    "403": (StorageForbiddenError, r"refuses access \(.*\): give credentials that may read, list and write there"),
    "503": (
        StorageAwayError,
        r"still fails after \d+ s of retries \((Reduce your request rate\.|Service Unavailable)\): once it answers",
    ),
    "quota": (StorageFullError, r"can't be written to \(.*quota.*\): make room there"),
    "too large": (StorageFullError, r"can't be written to \(.*maximum size.*\): make room there"),
    "501": (StorageError, r"can't be used \(.*not supported.*\): .*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
}
"""By fault the error, and what its line says."""
every_fault = pytest.mark.parametrize("fault", RIGHT)
WRITING = ("quota", "too large", "501")


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    before = dict(os.environ)
    os.environ.update(CREDENTIALS)
    with s3_server() as found:
        conf["s3"] = {"endpoint_url": found.url, "config_kwargs": {"retries": {"max_attempts": 1}}}
        yield found
    del conf["s3"]
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bucket(server: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.05)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    return server.folder(request.node.name.replace("[", "-").replace("]", "").replace(" ", "-"))


def check(error: pytest.ExceptionInfo[Exception], url: str, fault: str) -> None:
    """The error names the URL first, says what would be right, in one line, also from a worker of Ray."""
    text = str(error.value)
    assert text.startswith(url)
    assert "\n" not in text
    kind, _ = RIGHT[fault]
    found = user_error([f"Traceback (most recent call last):\nraymae.storage.refusal.{kind.__name__}: {text}\n"])
    assert str(found) == text


@every_fault
def test_a_file_that_can_t_be_written(bucket: Folder, server: S3, fault: str) -> None:
    bucket.write_bytes("before", b"1")
    for write in (bucket.write_bytes, bucket.create):
        kind, words = RIGHT[fault]
        with server.failing(fault), pytest.raises(kind, match=f"(?i){words}") as error:
            write("after", b"2")
        check(error, bucket.url, fault)
    assert bucket.read_bytes("before") == b"1"
    assert bucket.names() == ["before"]


@pytest.mark.parametrize("fault", [fault for fault in RIGHT if fault not in WRITING])
def test_a_file_that_can_t_be_read(bucket: Folder, server: S3, fault: str) -> None:
    bucket.write_bytes("a", b"12345678")
    kind, words = RIGHT[fault]
    reads = [lambda: bucket.read_bytes("a"), lambda: bucket.read_ranges([("a", 0, 4)]), lambda: bucket.open("a").read()]
    for read in [*reads, bucket.names, bucket.files]:
        with server.failing(fault), pytest.raises(kind, match=f"(?i){words}") as error:
            read()
        check(error, bucket.url, fault)


@every_fault
def test_a_job_names_the_option(bucket: Folder, server: S3, fault: str) -> None:
    """As jobs/prepare and all others open their storage, and jobs/predict its output."""
    with server.failing(fault), pytest.raises(ValueError, match=f"(?i)^--storage {bucket.url} {RIGHT[fault][1]}"):
        open_storage(bucket.url)
    option = "--predict.output"
    with server.failing(fault), pytest.raises(ValueError, match=f"(?i)^{option} {bucket.url}.* {RIGHT[fault][1]}"):
        open_output(option, f"{bucket.url}/labels.csv")


def test_a_bucket_that_doesn_t_exist_is_not_made(bucket: Folder, server: S3) -> None:
    with pytest.raises(ValueError, match=r"^--storage s3://slip/runs can't be written: there is no bucket s3://slip "):
        open_storage("s3://slip/runs")
    with pytest.raises(ValueError, match=r"^--predict.output s3://slip/runs can't .* there is no bucket s3://slip "):
        open_output("--predict.output", "s3://slip/runs/labels.csv")
    with pytest.raises(NoBucketError):
        Folder("s3://slip/runs").create("a", b"")
    assert not bucket.fs.exists("s3://slip")


def test_output_is_written_whole_or_not_at_all(bucket: Folder, server: S3) -> None:
    output = open_output("--predict.output", f"{bucket.url}/labels.parquet")
    table = pa.table({"path": ["a"], "label": ["b"]})
    output.write([table], table.schema)
    before = bucket.read_bytes("labels.parquet")
    for fault, (kind, words) in RIGHT.items():
        with server.failing(fault), pytest.raises(kind, match=f"(?i){words}") as error:
            output.write([table, table], table.schema)
        check(error, bucket.url, fault)
    assert bucket.read_bytes("labels.parquet") == before


@pytest.mark.parametrize("fault", [fault for fault in RIGHT if fault not in WRITING])
def test_a_store_that_can_t_be_read_stops_the_training(
    store: FeatureStore, bucket: Folder, server: S3, fault: str
) -> None:
    """No shard is called damaged for it."""
    for name in store.shards.names():
        bucket.write_bytes(name, store.shards.read_bytes(name))
    far = FeatureStore(store.folder, bucket)
    far.read(np.array([0]))
    with server.failing(fault), pytest.raises(RIGHT[fault][0]) as error:
        far.read(np.array([1]))
    check(error, bucket.url, fault)
    assert np.array_equal(far.read(np.array([1]))[0].view(np.uint16), store.read(np.array([1]))[0].view(np.uint16))
    assert not [name for name in bucket.names() if name.endswith(".damaged")]


@every_fault
def test_a_checkpoint_that_can_t_be_written_leaves_the_last_one(bucket: Folder, server: S3, fault: str) -> None:
    committer = Committer(bucket, keep=2)
    committer.commit(5, {"model": {"w": torch.full((2,), 5.0)}}, {})
    committer.wait()
    committer.commit(6, {"model": {"w": torch.full((2,), 6.0)}}, {})
    committer.wait()
    with server.failing(fault):
        committer.commit(7, {"model": {"w": torch.full((2,), 7.0)}}, {})
        with pytest.raises(StorageError) as error:
            committer.wait()
    check(error, bucket.url, fault)
    newest = complete(bucket)[-1]
    assert load_commit(bucket, newest)[0]["model"]["w"].tolist() == [6.0, 6.0]


def test_a_training_that_a_full_bucket_stopped_ends_as_an_undisturbed_one(
    store: FeatureStore, bucket: Folder, server: S3, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=2, commit_minutes=1e-6, probe_clips=0))
    whole = make_spec(store, tmp_path_factory.mktemp("whole"), config=config)
    assert run_stage(whole, BareSession(store, whole.artifact))
    spec = replace(whole, artifact=bucket)
    with server.failing("quota"), pytest.raises(StorageFullError, match="make room there"):
        run_stage(spec, BareSession(store, bucket))
    assert run_stage(spec, BareSession(store, bucket))
    assert bucket.read_checked("model.safetensors") == whole.artifact.read_bytes("model.safetensors")


class NoCredentialsError(Exception):
    """As botocore's, which is no OSError."""

    __module__ = "botocore.exceptions"


class ParamValidationError(Exception):
    """As botocore's."""

    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NoCredentialsError("Unable to locate credentials"), StorageForbiddenError, "Unable to locate credentials"),
        (ParamValidationError("Invalid\nbucket name"), StorageError, r"\(Invalid bucket name\): check its name"),
        (OSError(28, "No space left on device"), StorageFullError, "No space left on device"),
        (PermissionError(), StorageForbiddenError, r"\(PermissionError\)"),
        (FileNotFoundError("a"), FileNotFoundError, "^a$"),
        (FileExistsError("a"), FileExistsError, "^a$"),
        (TypeError("a bug"), TypeError, "a bug"),
    ],
)
def test_errors_of_other_kinds(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        raise explained("s3://key:secret@bucket/a", error)
    assert "secret" not in str(refusal.explained("s3://key:secret@bucket/a", error))


def test_the_system_s_words_of_a_local_path_are_kept() -> None:
    error = PermissionError(13, "Permission denied", "/data/runs/a")
    assert explained("/data/runs", error) is error
