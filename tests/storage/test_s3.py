"""A storage on S3, by s3fs and servers of the tests' own: folders, leases, checkpoints, and a server that fails.

The servers are moto's and, where it is installed, OpenStack Swift, which has no conditional requests.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fsspec.config import conf

from raymae.benchmark.harness.s3_server import CREDENTIALS, S3, proxy_to, s3_server
from raymae.features.store import FeatureStore
from raymae.storage import connections, retry
from raymae.storage.commits import complete, latest_step
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.storage.lease import Lease
from raymae.training.batches.windows import read_groups
from raymae.training.run_stage import run_stage
from raymae.training.state.checkpoint import Committer, load_commit
from raymae.training.worker import BareSession
from tests.storage.test_lease import race
from tests.support import swift
from tests.support.training import TINY, make_spec

only_moto = pytest.mark.parametrize("server", ["moto"], indirect=True)


@pytest.fixture(scope="module", params=["moto", pytest.param("swift", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server; s3fs finds it by its environment and fsspec's configuration."""
    if request.param == "swift" and (reason := swift.why_no_swift()):
        pytest.skip(reason)
    before = dict(os.environ)
    os.environ.update(CREDENTIALS if request.param == "moto" else swift.CREDENTIALS)
    with ExitStack() as stack:
        if request.param == "moto":
            found = stack.enter_context(s3_server())
        else:
            port = stack.enter_context(swift.swift_server(tmp_path_factory.mktemp("swift")))
            found = stack.enter_context(proxy_to(port, swift.CREDENTIALS))
        # botocore retries for half a minute before raymae hears of it
        conf["s3"] = {"endpoint_url": found.url, "config_kwargs": {"retries": {"max_attempts": 1}}}
        yield found
    del conf["s3"]
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bucket(server: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder of its own for each test."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.05)
    return server.folder(request.node.name.replace("[", "-").replace("]", ""))


def test_a_folder_is_written_listed_and_removed(bucket: Folder) -> None:
    assert not bucket.is_local
    bucket.write_json("a/b.json", [1])
    assert (bucket / "a").sizes() == {"b.json": len(bucket.read_bytes("a/b.json"))}
    assert [bucket.create("a/c", content) for content in (b"1", b"2")] == [True, False]
    assert bucket.read_bytes("a/c") == b"1"
    bucket.finish({"steps": 3})
    assert bucket.result() == {"steps": 3}
    bucket.remove("a")
    assert bucket.names() == ["checksums.json", "done.json"]


def test_one_of_twenty_gets_a_lease(bucket: Folder) -> None:
    assert race(bucket, 5) == [1] * 5


@only_moto
def test_a_file_is_created_once_without_conditional_requests(
    bucket: Folder, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(call: Callable[[], None]) -> None:
        monkeypatch.setattr(connections, "time", SimpleNamespace(sleep=lambda _: call()))

    with server.failing("condition"):
        meanwhile(lambda: None)
        assert [bucket.create("a", content) for content in (b"1", b"2")] == [True, False]
        meanwhile(lambda: bucket.write_bytes("b", b"another's"))
        assert not bucket.create("b", b"mine")
        meanwhile(lambda: bucket.remove("c"))
        assert not bucket.create("c", b"mine")
    assert [bucket.read_bytes(name) for name in bucket.names()] == [b"1", b"another's"]


@only_moto
def test_what_can_t_be_removed_at_once_is_removed_one_by_one(bucket: Folder, server: S3) -> None:
    for name in ("a/1", "a/b/2", "c", "d"):
        bucket.write_bytes(name, b"")
    with server.failing("removal"):
        bucket.remove("a")
        bucket.remove("c")
    assert bucket.names() == ["d"]


@only_moto
@pytest.mark.slow
def test_one_of_twenty_gets_a_lease_a_thousand_times(bucket: Folder) -> None:
    assert race(bucket, 1000) == [1] * 1000


@only_moto
def test_a_lease_costs_a_request_per_renewal(bucket: Folder, server: S3) -> None:
    mine = Lease(bucket, renew=1000)
    assert mine.take()
    before = len(server.requests)
    for _ in range(5):
        mine._renew()
    asked = server.requests[before:]
    assert len(asked) == 5, asked
    assert all(one.startswith("PUT ") for one in asked)
    mine.release()


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_lease_is_kept_while_the_server_fails_for_a_while(bucket: Folder, server: S3, fault: str) -> None:
    mine = Lease(bucket, renew=0.1)
    assert mine.take()
    with server.failing(fault):
        time.sleep(0.5)
    before, until = mine._number, time.monotonic() + 30
    while mine._number < before + 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    mine.check()
    mine.release()
    assert Lease(bucket).take()


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_training_waits_for_a_server_that_fails(
    store: FeatureStore, bucket: Folder, server: S3, fault: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    before = server.failed
    config = replace(TINY, pretrain=replace(TINY.pretrain, epochs=2, commit_minutes=1e-6, probe_clips=0))
    whole = make_spec(store, tmp_path / "whole", config=config)
    assert run_stage(whole, BareSession(store, whole.artifact))

    def fail() -> None:
        while latest_step(bucket) is None:
            time.sleep(0.02)
        with server.failing(fault):
            time.sleep(1)

    failing = threading.Thread(target=fail)
    failing.start()
    spec = replace(whole, artifact=bucket)
    assert run_stage(spec, BareSession(store, bucket))
    failing.join()
    assert bucket.read_checked("model.safetensors") == whole.artifact.read_bytes("model.safetensors")
    assert [event["step"] for event in read_events(bucket)] == [event["step"] for event in read_events(whole.artifact)]
    assert server.failed > before, "nothing was asked for while it failed"


def test_checkpoints_on_s3_are_kept_and_read(bucket: Folder) -> None:
    committer = Committer(bucket, keep=2)
    for step in (5, 10, 15):
        committer.commit(step, {"model": {"w": torch.full((2,), float(step))}}, {})
    committer.wait()
    assert latest_step(bucket) == 15
    assert [load_commit(bucket, name)[0]["model"]["w"][0].item() for name in complete(bucket)] == [10, 15]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_those_of_a_store_on_disk(store: FeatureStore, bucket: Folder, workers: int) -> None:
    for kind in ("folder", "shards"):
        source: Folder = getattr(store, kind)
        for name in source.names():
            (bucket / kind).write_bytes(name, source.read_bytes(name))
    far = FeatureStore(bucket / "folder", bucket / "shards")
    order = make_spec(store, Path("/nowhere")).order()
    for rank in range(workers):
        pairs = zip(read_groups(store, order, rank, workers, 1), read_groups(far, order, rank, workers, 1), strict=True)
        for (step, near_groups), (far_step, far_groups) in pairs:
            assert step == far_step
            for one, other in zip(near_groups, far_groups, strict=True):
                assert one.place == other.place
                assert one.values.tobytes() == other.values.tobytes()
                assert np.array_equal(one.rows, other.rows)
                assert np.array_equal(one.valid, other.valid)
