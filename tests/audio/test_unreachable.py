"""Recordings in a storage that fails temporarily are retried; permanent errors are reported at once."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymae.audio import clip_reader, containers, decode, sources
from raymae.audio.clip_reader import ClipReader
from raymae.audio.containers import WHOLE
from raymae.audio.decode import load
from raymae.audio.errors import AudioError, UnreachableError
from raymae.audio.sources import open_clip
from raymae.features.write import write_shard
from raymae.storage import retry
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded, tar
from tests.support.failing_files import FailingFiles


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FailingFiles]]:
    """Storage whose operations fail three times each, without pauses between the tries."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.0)
    monkeypatch.setattr(FailingFiles, "failures", 3)
    yield FailingFiles
    FailingFiles.calls.clear()
    FailingFiles.store.clear()
    containers.find_container.cache_clear()


def put(files: type[FailingFiles], path: str, content: bytes) -> None:
    """Write a file, without a failure."""
    failures, files.failures = files.failures, 0
    files().pipe_file(path, content)
    files.failures = failures
    files.calls.clear()


def test_reading_a_file_a_member_and_its_features_is_retried(files: type[FailingFiles]) -> None:
    sound = encoded()
    put(files, "/bucket/a.wav", sound)
    put(files, "/bucket/s.tar", tar({"a.wav": sound}))
    assert open_clip("failing://bucket/a.wav") == sound
    assert files.calls["read", "/bucket/a.wav"] == 4
    files.calls.clear()
    path = "tar://a.wav::failing://bucket/s.tar"
    assert open_clip(path) == sound
    files.calls.clear()
    assert ClipReader(TINY_AUDIO, 10)(path)[1] == TINY_AUDIO.n_frames


def test_every_piece_of_a_long_recording_is_retried(files: type[FailingFiles]) -> None:
    content = bytes(range(256)) * (WHOLE // 256 + 1)
    put(files, "/bucket/long.wav", content)
    file = open_clip("failing://bucket/long.wav")
    assert isinstance(file, io.BufferedReader)
    files.calls.clear()
    assert file.read(300) == content[:300]
    assert files.calls["read", "/bucket/long.wav"] == 4


def test_a_storage_that_keeps_failing_is_unreachable(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "/bucket/a.wav", encoded())
    monkeypatch.setattr(containers, "READ_SECONDS", 0.0)
    monkeypatch.setattr(FailingFiles, "failures", 10**9)
    monkeypatch.setattr(FailingFiles, "fault", lambda: TimeoutError("slow down"))
    with pytest.raises(UnreachableError, match="slow down"):
        open_clip("failing://bucket/a.wav")


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), ValueError("no URL")])
def test_permanent_errors_are_not_retried(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    put(files, "/bucket/a.wav", encoded())
    monkeypatch.setattr(FailingFiles, "fault", lambda: error)
    with pytest.raises(AudioError) as caught:
        open_clip("failing://bucket/a.wav")
    assert not isinstance(caught.value, UnreachableError)
    assert files.calls["read", "/bucket/a.wav"] == 1


LIMIT = 0.75
"""Time limit of a clip in these tests, s; long enough for a busy machine."""


def slow_tar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float) -> str:
    """The address of the last member of a tar on a disk with a delay for each read, s."""
    real = os.pread

    def pread(*arguments: int) -> bytes:
        time.sleep(seconds)
        return real(*arguments)

    monkeypatch.setattr(os, "pread", pread)
    large = bytes(2**17)  # more than is read at once
    (tmp_path / "s.tar").write_bytes(tar({**{f"{number}.bin": large for number in range(8)}, "a.wav": encoded()}))
    return f"tar://a.wav::{tmp_path}/s.tar"


def test_a_storage_that_answers_may_take_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = slow_tar(monkeypatch, tmp_path, LIMIT / 5)
    began = time.monotonic()
    assert ClipReader(TINY_AUDIO, LIMIT)(path)[1] == TINY_AUDIO.n_frames
    assert time.monotonic() - began > LIMIT


def test_a_storage_that_refuses_is_not_silent(files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    put(files, "/bucket/a.wav", encoded())
    monkeypatch.setattr(retry, "FIRST_DELAY", LIMIT / 4)
    monkeypatch.setattr(containers, "READ_SECONDS", 1.5 * LIMIT)
    monkeypatch.setattr(FailingFiles, "failures", 10**9)
    monkeypatch.setattr(FailingFiles, "fault", lambda: TimeoutError("slow down"))
    with pytest.raises(UnreachableError, match="slow down"):
        ClipReader(TINY_AUDIO, LIMIT)("failing://bucket/a.wav")


def test_pieces_of_a_long_recording_may_take_their_time(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "/bucket/long.wav", encoded(n_samples=500_000))
    monkeypatch.setattr(containers.Container.part, "__defaults__", (2**17,))  # 8 pieces
    monkeypatch.setattr(files, "failures", 0)
    monkeypatch.setattr(sources, "WHOLE", 1000)
    monkeypatch.setattr(containers, "WHOLE", 1000)
    real = FailingFiles.cat_file

    def cat_file(self: FailingFiles, *arguments: Any, **named: Any) -> bytes:
        time.sleep(LIMIT / 5)
        return bytes(real(self, *arguments, **named))

    monkeypatch.setattr(FailingFiles, "cat_file", cat_file)
    began = time.monotonic()
    whole = replace(TINY_AUDIO, clip_seconds=62.5)
    assert ClipReader(whole, LIMIT)("failing://bucket/long.wav")[1] == whole.n_frames
    assert time.monotonic() - began > LIMIT


class Silence:
    """Storage that never answers for an address with "dead" in it, and not the first time for one with "late"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.release, self.folder, self.asked = threading.Event(), folder, Counter[str]()
        monkeypatch.setattr(clip_reader, "open_clip", self.open)

    def open(self, path: str) -> bytes:
        self.asked[path] += 1
        if "dead" in path or ("late" in path and self.asked[path] == 1):
            containers.read_with_retries(lambda: self.release.wait(60), path)
        return encoded()

    def shard(self, *paths: str) -> dict[str, Any]:
        clips = pa.table({"clip_id": paths, "path": paths})
        return write_shard(Folder(str(self.folder)), "one", clips, ClipReader(TINY_AUDIO, LIMIT))


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Silence]:
    found = Silence(monkeypatch, tmp_path)
    yield found
    found.release.set()


def test_one_silent_address_is_a_bad_file(silence: Silence, tmp_path: Path) -> None:
    summary = silence.shard("s3://a/late", "s3://a/1", "s3://a/dead", "gs://b/dead", "s3://a/2")
    assert {one["path"]: one["reason"] for one in summary["quarantine"]} == {
        "s3://a/dead": f"no response from its storage for {LIMIT} s",
        "gs://b/dead": f"no response from its storage for {LIMIT} s",
    }
    table = pq.read_table(tmp_path / "one")
    assert table["clip_id"].to_pylist() == ["s3://a/late", "s3://a/1", "s3://a/2"]


def test_two_silent_addresses_in_a_row_are_an_outage(silence: Silence, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"s3://a/dead2 can't be reached \(no response from its storage"):
        silence.shard("s3://a/1", "s3://a/dead1", "gs://b/1", "s3://a/dead2")
    assert not (tmp_path / "one").exists()


def test_a_disk_that_hangs_is_an_outage_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = threading.Event()
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(encoded())
    monkeypatch.setattr(containers, "_read_local", lambda *_: release.wait(60))
    paths = [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]
    with pytest.raises(ConnectionError, match=r"b\.wav can't be reached"):
        write_shard(
            Folder(str(tmp_path)), "one", pa.table({"clip_id": paths, "path": paths}), ClipReader(TINY_AUDIO, LIMIT)
        )
    release.set()


def test_indexing_an_archive_does_not_count_as_a_clips_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = containers.tarfile.TarFile.next

    def slow(self: Any) -> Any:
        time.sleep(LIMIT / 5)  # tarfile's own work
        return real(self)

    (tmp_path / "s.tar").write_bytes(tar({**{f"{number}.bin": b"" for number in range(8)}, "a.wav": encoded()}))
    monkeypatch.setattr(containers.tarfile.TarFile, "next", slow)
    assert ClipReader(TINY_AUDIO, LIMIT)(f"tar://a.wav::{tmp_path}/s.tar")[1] == TINY_AUDIO.n_frames


class ServerDisconnectedError(Exception):
    """As aiohttp's, which is no OSError."""


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset by peer"), ServerDisconnectedError("reset by peer")]
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_long_recording_that_breaks_off_is_not_truncated(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch, error: Exception, after: int
) -> None:
    put(files, "/bucket/long.wav", encoded(n_samples=4_000_000))
    monkeypatch.setattr(sources, "WHOLE", 1000)  # fetched piece by piece
    monkeypatch.setattr(containers, "WHOLE", 1000)
    monkeypatch.setattr(containers._Part, "__init__", partialmethod(broken, containers._Part.__init__, error, after))
    with pytest.raises(UnreachableError, match="reset by peer"):
        load(open_clip("failing://bucket/long.wav"), TINY_AUDIO.sample_rate)


def broken(self: Any, init: Any, error: Exception, after: int, container: Any, *arguments: Any) -> None:
    """A part whose reads fail after some."""
    init(self, container, *arguments)
    reads = count()

    def read(start: int, stop: int) -> bytes:
        if next(reads) >= after:
            raise error
        return bytes(container.read(start, stop))

    self._container = SimpleNamespace(read=read)


@pytest.mark.parametrize(("number", "unreachable"), [(errno.ESTALE, True), (errno.EIO, True), (errno.EACCES, False)])
def test_transient_errors_of_a_shared_file_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, unreachable: bool
) -> None:
    def fail(source: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(decode, "_open", fail)
    with pytest.raises(AudioError, match=os.strerror(number)) as caught:
        load(tmp_path / "a.wav", 8000)
    assert isinstance(caught.value, UnreachableError) == unreachable


def test_transient_errors_of_an_archive_on_a_shared_file_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "s.tar").write_bytes(tar({"a.wav": encoded()}))
    path = f"tar://a.wav::{tmp_path}/s.tar"
    assert open_clip(path) == encoded()

    def fail(*_: Any) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(containers, "READ_SECONDS", 0.0)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(UnreachableError, match=os.strerror(errno.ESTALE)):
        open_clip(path)


def test_an_archive_that_could_not_be_listed_is_listed_the_next_time(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "/bucket/s.tar", tar({"a.wav": encoded()}))
    path = "tar://a.wav::failing://bucket/s.tar"
    with monkeypatch.context() as outage:
        outage.setattr(containers, "READ_SECONDS", 0.0)
        outage.setattr(FailingFiles, "failures", 10**9)
        outage.setattr(FailingFiles, "fault", lambda: TimeoutError("no answer"))
        with pytest.raises(UnreachableError):
            open_clip(path)
        with pytest.raises(UnreachableError, match=r"failing://bucket/s.tar can't be reached"):
            sources.look_into("tar", "failing://bucket/s.tar")
    assert open_clip(path) == encoded()


def test_a_clip_that_cannot_be_reached_is_not_quarantined(
    files: type[FailingFiles], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        put(files, f"/bucket/{name}.wav", encoded())
    monkeypatch.setattr(containers, "READ_SECONDS", 0.0)  # so that each try of a clip is one of its storage
    paths = ["failing://bucket/a.wav", "failing://bucket/b.wav"]
    clips = pa.table({"clip_id": ["a", "b"], "path": paths})
    summary = write_shard(Folder(str(tmp_path)), "one", clips, ClipReader(TINY_AUDIO, 10))
    assert (summary["rows"], summary["quarantine"]) == (2, [])
    assert files.calls["read", "/bucket/b.wav"] == 4

    monkeypatch.setattr(FailingFiles, "failures", 10**9)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)
    with pytest.raises(ConnectionError, match=r"failing://bucket/a.wav can't be reached .* the same command"):
        write_shard(Folder(str(tmp_path)), "two", clips, ClipReader(TINY_AUDIO, 10))
    assert not Folder(str(tmp_path)).exists("two.parquet")
