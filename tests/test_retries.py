"""Storage that fails for now is asked again; what lasts is not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raymae import retries
from raymae.audio import AudioError
from raymae.retries import PAUSES, may_pass, patiently
from raymae.sources import WHOLE, UnreachableError, open_clip
from raymae.store import ClipReader
from tests.audio_files import TINY_AUDIO, encoded, tar


class Failing(MemoryFileSystem):
    """Storage whose next reads fail with `error`."""

    protocol = "failing"
    left = 0
    error: Exception = TimeoutError()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("failing://", "memory://")))

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        if Failing.left > 0:
            Failing.left -= 1
            raise Failing.error
        return bytes(super().cat_file(path, **kwargs))


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import fsspec

    monkeypatch.setattr(retries, "PAUSES", (0.0,) * len(PAUSES))
    fsspec.register_implementation("failing", Failing, clobber=True)
    yield
    Failing.left = 0
    Failing().store.clear()


@pytest.mark.parametrize("times", range(len(PAUSES) + 2))
def test_a_storage_that_fails_a_few_times_gives_the_clip(times: int) -> None:
    sound = encoded()
    Failing().pipe_file("/bucket/a.wav", sound)
    Failing.left, Failing.error = times, TimeoutError("slow down")
    if times <= len(PAUSES):
        assert open_clip("failing://bucket/a.wav") == sound
    else:
        with pytest.raises(UnreachableError, match="slow down"):
            open_clip("failing://bucket/a.wav")
    assert Failing.left == 0


def test_members_and_features_are_asked_for_again_too() -> None:
    sound = encoded()
    Failing().pipe_file("/bucket/s.tar", tar({"a.wav": sound}))
    Failing.left, Failing.error = 2, OSError("connection reset")
    path = "tar://a.wav::failing://bucket/s.tar"
    assert open_clip(path) == sound
    Failing.left = 2
    assert ClipReader(TINY_AUDIO, 10)(path)[1] == TINY_AUDIO.n_frames


def test_of_a_long_recording_every_piece_is_asked_for_again() -> None:
    content = bytes(range(256)) * (WHOLE // 256 + 1)
    Failing().pipe_file("/bucket/long.wav", content)
    file = open_clip("failing://bucket/long.wav")
    assert not isinstance(file, str | bytes)
    Failing.left, Failing.error = len(PAUSES), OSError("connection reset")
    assert file.read(300) == content[:300]
    assert Failing.left == 0
    assert isinstance(file, io.BufferedReader)


class RefusedError(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), ValueError("no URL"), RefusedError(403)])
def test_what_lasts_is_not_asked_for_again(error: Exception) -> None:
    Failing.left, Failing.error = 9, error
    with pytest.raises(AudioError) as caught:
        open_clip("failing://bucket/a.wav")
    assert not isinstance(caught.value, UnreachableError)
    assert Failing.left == 8


@pytest.mark.parametrize(("status", "passes"), [(404, False), (408, True), (429, True), (500, True), (503, True)])
def test_of_http_only_some_refusals_are_for_now(status: int, passes: bool) -> None:
    assert may_pass(RefusedError(status)) == passes


def test_the_last_error_is_the_one_that_is_raised() -> None:
    errors = [OSError(str(number)) for number in range(len(PAUSES) + 1)]

    def fail() -> None:
        raise errors.pop(0)

    with pytest.raises(OSError, match=str(len(PAUSES))):
        patiently(fail)
    assert not errors
