"""What a node keeps of stored files: never more than the limit, never half a part, and reading goes on without it."""

from __future__ import annotations

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raymae.storage import range_cache
from raymae.storage.range_cache import ABANDONED, RangeCache

SIZE = 1000


def content_of(number: int) -> bytes:
    return bytes([number % 251]) * SIZE


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("pages/*/*"), key=lambda path: int(path.name))


def kept(cache: RangeCache, count: int) -> list[int]:
    """The numbers of the parts that are kept; each has to be what was given."""
    found = [(number, cache.read("s3://a/b", number, SIZE)) for number in range(count)]
    assert all(content == content_of(number) for number, content in found if content is not None)
    return [number for number, content in found if content is not None]


def test_a_part_is_kept_by_its_file_place_and_size(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 10**6)
    cache.keep("s3://a/b", 5, memoryview(content_of(1)))
    assert RangeCache(str(tmp_path), 10**6).read("s3://a/b", 5, SIZE) == content_of(1)
    assert cache.read("s3://a/b", 5, SIZE - 1) is None
    assert cache.read("s3://a/b", 6, SIZE) is None
    assert cache.read("s3://a/c", 5, SIZE) is None


def test_at_the_limit_the_oldest_parts_give_way(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 20 * SIZE)
    for number in range(50):
        cache.keep("s3://a/b", number, content_of(number))
        os.utime(parts(tmp_path)[-1], (number, number))
        assert sum(path.stat().st_size for path in parts(tmp_path)) <= cache.limit
    found = kept(cache, 50)
    assert found == list(range(50 - len(found), 50))
    assert len(found) >= 17
    cache.keep("s3://a/b", 99, bytes(cache.limit + 1))
    assert kept(cache, 50) == found


def test_many_at_once_keep_the_limit_and_whole_parts(tmp_path: Path) -> None:
    cache = RangeCache(str(tmp_path), 30 * SIZE)

    def work(worker: int) -> int:
        for number in range(100):
            cache.keep("s3://a/b", number, content_of(number))
            kept(cache, worker)
        return sum(path.stat().st_size for path in tmp_path.glob("pages/*/*") if path.exists())

    with ThreadPoolExecutor(4) as pool:  # a lock is a file's, not a process's
        sizes = list(pool.map(work, range(4)))
    assert max(sizes) <= cache.limit + 4 * SIZE
    assert 0 < len(kept(cache, 100)) <= 34


@pytest.mark.parametrize("used", [None, "", "12x"])
def test_after_a_crash_the_parts_are_counted_anew(tmp_path: Path, used: str | None) -> None:
    cache = RangeCache(str(tmp_path), 10 * SIZE)
    for number in range(10):
        cache.keep("s3://a/b", number, content_of(number))
    left = parts(tmp_path)[0].with_name("3-abc.part")
    left.write_bytes(bytes(SIZE))
    os.utime(left, (time.time() - 2 * ABANDONED,) * 2)
    counter = tmp_path / "pages/used"
    counter.unlink() if used is None else counter.write_text(used)
    cache.keep("s3://a/b", 10, content_of(10))
    assert not left.exists()
    assert 10 in kept(cache, 11)
    assert sum(path.stat().st_size for path in parts(tmp_path)) <= cache.limit


@pytest.mark.parametrize("fault", ["no folder", "no room"])
def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RangeCache(str(tmp_path / "cache"), 10**6)
    if fault == "no folder":
        (tmp_path / "cache").write_text("")
    else:
        cache.keep("s3://a/b", 0, content_of(0))

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(range_cache.Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        for number in range(1, 5):
            cache.keep("s3://a/b", number, content_of(number))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        f"compute.cache {cache.folder} can't be written to"
    ]
    assert kept(cache, 5) == ([0] if fault == "no room" else [])
    assert not list(tmp_path.glob("cache/pages/*/*.part"))
