"""Reading a store from object storage by ranges: the same clips to the bit, no byte too many, damage noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.features import pages as pages_module
from raymae.features.pages import LARGEST_GAP, merged, page_starts
from raymae.features.shard import DAMAGED
from raymae.features.store import ROW_GROUP, FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.range_cache import RangeCache
from tests.support.audio_files import make_store, write_clips

CLIPS = 75
"""No multiple of a row group, so that the last one is smaller."""


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("near")
    return make_store(folder, write_clips(folder, CLIPS))


@pytest.fixture(scope="module")
def far(near: FeatureStore) -> Iterator[FeatureStore]:
    """The same store where every file is read by requests."""
    memory = fsspec.filesystem("memory")
    for kind in ("folder", "shards"):
        source: Folder = getattr(near, kind)
        for name in source.names():
            memory.pipe(f"/far/{kind}/{name}", source.read_bytes(name))
    yield FeatureStore(Folder("memory://far/folder"), Folder("memory://far/shards"))
    memory.rm("/far", recursive=True)


@given(rows=st.lists(st.integers(0, CLIPS - 1), min_size=1, max_size=60))
def test_any_rows_in_any_order_are_those_on_disk(near: FeatureStore, far: FeatureStore, rows: list[int]) -> None:
    wanted, found = near.read(np.array(rows)), far.read(np.array(rows))
    assert np.array_equal(found[0].view(np.uint16), wanted[0].view(np.uint16))
    assert np.array_equal(found[1], wanted[1])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of every range that is requested."""
    sizes: list[int] = []
    read = Folder.read_ranges

    def counted(self: Folder, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        sizes.extend(end - start for _, start, end in ranges)
        return read(self, ranges)

    monkeypatch.setattr(Folder, "read_ranges", counted)
    return sizes


def test_only_the_rows_are_requested_and_neighbours_at_once(far: FeatureStore, asked: list[int]) -> None:
    far.read(np.array([0, 1, 2, 3, 4, 5, 6, 7, 33]))
    clip = 2 * far.audio.n_frames * far.audio.n_mels
    assert asked[-1] == clip
    assert sum(asked) < 1.1 * 9 * clip


def test_what_was_read_once_is_read_from_the_nodes_cache(
    near: FeatureStore, far: FeatureStore, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "LARGEST_GAP", 0)  # what lies between small clips would be requested again
    cached = replace(far, cache=RangeCache(str(tmp_path), 10**9))
    random = np.random.default_rng(0)
    for _ in range(4):
        rows = random.permutation(CLIPS)[:30]
        for _ in range(2):
            values, frames = cached.read(rows)
            assert np.array_equal(values.view(np.uint16), near.read(rows)[0].view(np.uint16))
            assert np.array_equal(frames, near.read(rows)[1])
    cached.read(np.arange(CLIPS))
    assert sum(asked) < 1.05 * CLIPS * 2 * far.audio.n_frames * far.audio.n_mels
    asked.clear()
    replace(far, cache=RangeCache(str(tmp_path), 10**9)).read(random.permutation(CLIPS))  # another process
    assert not asked


def test_a_damaged_page_of_the_cache_is_read_from_the_storage_and_replaced(
    near: FeatureStore, far: FeatureStore, tmp_path: Path, asked: list[int]
) -> None:
    cached, rows = replace(far, cache=RangeCache(str(tmp_path), 10**9)), np.arange(3 * ROW_GROUP)
    cached.read(rows)
    pages = sorted(path for path in tmp_path.glob("pages/*/*"))
    contents = [path.read_bytes() for path in pages]
    pages[0].write_bytes(contents[0][:-1] + b"x")
    pages[1].write_bytes(contents[1][:100])
    pages[2].unlink()
    asked.clear()
    assert np.array_equal(cached.read(rows)[0].view(np.uint16), near.read(rows)[0].view(np.uint16))
    assert sum(asked) >= sum(map(len, contents[:3]))
    assert [path.read_bytes() for path in pages] == contents


@contextmanager
def damaged(far: FeatureStore, shard: int) -> Iterator[str]:
    """A flipped bit in the first clip of a shard, and no trace of it afterwards, since tests share the store. Yields
    the error that names the shard."""
    memory, name = fsspec.filesystem("memory"), far.manifest["shards"][shard]["name"]
    content = memory.cat_file(f"/far/shards/{name}")
    assert far._pages is not None
    at = int(far._pages.starts[far._pages.first[shard]]) + 5
    memory.pipe(f"/far/shards/{name}", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    try:
        yield rf"shard .*{name} is damaged"
    finally:
        memory.pipe(f"/far/shards/{name}", content)
        if far.shards.exists(name + DAMAGED):
            far.shards.remove(name + DAMAGED)


def test_a_damaged_page_of_the_storage_is_not_kept(far: FeatureStore, tmp_path: Path) -> None:
    cached = replace(far, cache=RangeCache(str(tmp_path), 10**9))
    with damaged(far, 0) as error, pytest.raises(ValueError, match=error):
        cached.read(np.arange(ROW_GROUP))
    assert not list(tmp_path.glob("pages/*/*"))
    cached.read(np.arange(ROW_GROUP))


@pytest.mark.parametrize("shard", [0, 1])
def test_a_damaged_clip_names_the_shard(far: FeatureStore, shard: int) -> None:
    rows = [one["rows"] for one in far.manifest["shards"]]
    with damaged(far, shard) as error:
        with pytest.raises(ValueError, match=error):
            far.read(np.array([sum(rows[:shard])]))
        far.read(np.array([sum(rows[: 1 - shard])]))  # a clip of the other shard


def test_a_range_never_spans_shards_or_wide_gaps() -> None:
    shards, starts = np.array([0, 0, 0, 1, 1]), np.array([0, 110, 210 + LARGEST_GAP + 1, 5, 300])
    ends = starts + 100
    found = merged(shards, starts, ends)
    assert [(shard, start, end) for shard, start, end, _ in found] == [
        (0, 0, 210),
        (0, 210 + LARGEST_GAP + 1, 310 + LARGEST_GAP + 1),
        (1, 5, 400),
    ]
    assert [page for *_, pages in found for page in pages] == list(range(5))


@pytest.mark.parametrize("size", [2 * 1024 * 128, 1_000_000])
def test_a_row_group_of_long_clips_is_one_page(size: int) -> None:
    """Also where it is as large as Arrow's pages of 1 MB, or larger."""
    clips = [np.random.default_rng(number).bytes(size) for number in range(2 * ROW_GROUP + 1)]
    sink = pa.BufferOutputStream()
    table = pa.table({"clip_id": [str(len(clip)) for clip in clips], "log_mel": pa.array(clips, pa.binary(size))})
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = sink.getvalue().to_pybytes()
    starts = page_starts(pq.read_metadata(pa.BufferReader(content)), size)
    assert len(starts) == 3
    for number, clip in enumerate(clips):
        at = starts[number // ROW_GROUP] + number % ROW_GROUP * size
        assert content[at : at + size] == clip
