"""Clips in tar shards and Parquet columns: the original bytes, read in any order, or a reason why they aren't."""

import io
import os
import random
import tarfile
import tempfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio import containers, sources
from raymae.audio.containers import Container, holds_audio
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.sources import look_into, open_clip
from tests.support.audio_files import encoded, tar

CLIPS = {f"sub/{index:02d}.wav": encoded(index, 800 + index) for index in range(8)}
FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


def put(place: str, folder: Path, name: str, content: bytes) -> str:
    """Write a file to disk or to fsspec's memory; its path or URL."""
    if place == "disk":
        (folder / name).write_bytes(content)
        return str(folder / name)
    fsspec.filesystem("memory").pipe(f"/{folder.name}/{name}", content)
    return f"memory://{folder.name}/{name}"


def reason(path: str) -> str:
    """Why a clip can't be read, in one line without its path."""
    with pytest.raises(AudioError) as caught:
        open_clip(path)
    assert "\n" not in str(caught.value)
    assert path not in str(caught.value)
    return str(caught.value)


class Reads:
    """Counts what is read from containers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans: list[tuple[int, int]] = []
        real = Container.read

        def read(container: Container, start: int, stop: int) -> bytes:
            content = real(container, start, stop)
            self.spans.append((start, start + len(content)))
            return content

        monkeypatch.setattr(Container, "read", read)

    def bytes(self) -> int:
        total = sum(stop - start for start, stop in self.spans)
        self.spans.clear()
        return total


# Tar shards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("tar_format", FORMATS)
def test_members_are_read_unchanged(tmp_path: Path, place: str, tar_format: int) -> None:
    url = put(place, tmp_path, "shard.tar", tar(CLIPS, tar_format))
    contents, mtime = look_into("tar", url)
    assert contents.names.to_pylist() == list(CLIPS)
    assert contents.sizes.to_pylist() == [len(content) for content in CLIPS.values()]
    assert contents.problem == ""
    assert mtime > 1e9
    for name, content in random.Random(0).sample(sorted(CLIPS.items()), len(CLIPS)):
        address = f"tar://{name}::{url}"
        assert open_clip(address) == content
        with fsspec.open(address) as file:  # the address is a chained URL of fsspec
            assert file.read() == content


def test_a_tar_is_indexed_once_and_read_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put("disk", tmp_path, "shard.tar", tar(CLIPS))
    open_clip(f"tar://sub/00.wav::{url}")
    reads = Reads(monkeypatch)
    for name, content in CLIPS.items():
        open_clip(f"tar://{name}::{url}")
        assert reads.bytes() == len(content)


def test_a_changed_tar_is_indexed_again(tmp_path: Path) -> None:
    url = put("disk", tmp_path, "shard.tar", tar({"a.wav": b"1", "b.wav": b"2"}))
    assert open_clip(f"tar://b.wav::{url}") == b"2"
    put("disk", tmp_path, "shard.tar", tar({"b.wav": b"3", "a.wav": b"4"}))
    os.utime(url, (1, 1))
    assert open_clip(f"tar://b.wav::{url}") == b"3"


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "ü/日本.wav", "a::b.wav", "sub dir/x.wav"])
@pytest.mark.parametrize("tar_format", FORMATS[:2])
def test_any_name(tmp_path: Path, name: str, tar_format: int) -> None:
    url = put("disk", tmp_path, "shard.tar", tar({"./" + name: b"sound", "other": b""}, tar_format))
    assert look_into("tar", url)[0].names.to_pylist() == [name, "other"]
    assert open_clip(f"tar://{name}::{url}") == b"sound"


def test_a_name_that_is_not_utf8_is_still_read(tmp_path: Path) -> None:
    url = put("disk", tmp_path, "shard.tar", tar({"\udce9t\udce9.wav": b"sound"}, tarfile.GNU_FORMAT))
    (name,) = look_into("tar", url)[0].names.to_pylist()
    assert open_clip(f"tar://{name}::{url}") == b"sound"


def test_the_last_of_several_members_counts(tmp_path: Path) -> None:
    url = put("disk", tmp_path, "shard.tar", tar({"a.wav": b"old", "b.wav": b"b", "./a.wav": b"newer"}))
    assert look_into("tar", url)[0].names.to_pylist() == ["b.wav", "a.wav"]
    assert open_clip(f"tar://a.wav::{url}") == b"newer"


def test_members_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"secret")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for name, kind, target in (
            ("link.wav", tarfile.SYMTYPE, str(tmp_path / "secret.wav")),
            ("hard.wav", tarfile.LNKTYPE, "../secret.wav"),
            ("fifo.wav", tarfile.FIFOTYPE, ""),
            ("zero.wav", tarfile.CHRTYPE, ""),
            ("folder.wav", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    url = put("disk", tmp_path, "shard.tar", archive.getvalue())
    contents, _ = look_into("tar", url)
    assert contents.names.to_pylist() == ["link.wav", "hard.wav", "fifo.wav", "zero.wav"]
    assert contents.sizes.to_pylist() == [-1] * 4
    for name in contents.names.to_pylist():
        assert reason(f"tar://{name}::{url}") == "not a regular file"
    assert "no such member" in reason(f"tar://../secret.wav::{url}")
    assert "no such member" in reason(f"tar://{tmp_path}/secret.wav::{url}")


def test_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    assert reason(f"tar://a.wav::{tmp_path}/absent.tar") == "no such file"
    assert reason(f"tar://a.wav::{tmp_path}/fifo.tar") == "not a regular file"
    assert reason("tar://a.wav::/dev/zero") == "not a regular file"
    assert reason(f"tar://a.wav::{tmp_path}") == "not a regular file"
    assert reason("tar://a.wav::memory://absent/x.tar") == "no such file"
    assert "nosuch" in reason("tar://a.wav::nosuch://x.tar")
    for content in (b"", b"<html>404</html>" * 99, os.urandom(5000)):
        assert reason(f"tar://a.wav::{put('disk', tmp_path, 'bad.tar', content)}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("a.wav"))
    assert look_into("tar", put("disk", tmp_path, "a.tar", packed.getvalue()))[0].problem


@settings(deadline=None, max_examples=100)
@given(cut=st.integers(0, len(tar(CLIPS))))
def test_a_truncated_tar_loses_nothing_silently(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = put("disk", Path(folder), "cut.tar", tar(CLIPS)[:cut])
        contents, _ = look_into("tar", url)
        listed = contents.names.to_pylist()
        assert listed == list(CLIPS)[: len(listed)]
        good = 0
        for name in listed:
            try:
                assert open_clip(f"tar://{name}::{url}") == CLIPS[name]
                good += 1
            except AudioError as error:
                assert str(error).startswith("truncated: ")  # noqa: PT017
        assert good >= len(listed) - 1
        assert contents.problem or good == len(CLIPS)
        if contents.problem:
            assert reason(f"tar://*::{url}") == contents.problem


@settings(deadline=None, max_examples=100)
@given(changes=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4))
def test_forged_tars_are_read_or_refused(changes: list[tuple[int, bytes]]) -> None:
    members = {"x" * 120: b"1" * 700, "b.wav": b"2" * 100, "ü.wav": b"3" * 50}
    content = bytearray(tar(members, tarfile.GNU_FORMAT))
    for where, what in changes:
        content[where : where + len(what)] = what
    for header in range(0, len(content), 512):  # valid checksums, so that the other fields are read
        block = content[header : header + 512]
        block[148:156] = b" " * 8
        content[header + 148 : header + 156] = b"%06o\0 " % sum(block)
    with tempfile.TemporaryDirectory() as folder:
        url = put("disk", Path(folder), "forged.tar", bytes(content))
        for name in look_into("tar", url)[0].names.to_pylist():
            try:
                clip = open_clip(f"tar://{name}::{url}")
            except AudioError:
                continue
            assert isinstance(clip, bytes)
            assert clip in bytes(content)


@pytest.mark.parametrize("size", [10**13, -512, -1024, -(2**40)])
def test_a_claimed_size_is_not_trusted(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("huge.wav")
    info.size = size
    url = put("disk", tmp_path, "huge.tar", info.tobuf(tarfile.GNU_FORMAT) + b"sound" * 300)
    message = reason(f"tar://huge.wav::{url}")
    assert message.startswith(f"truncated: {10**13 - 1500} bytes" if size > 0 else "a size is negative")
    assert look_into("tar", url)[0].problem


def test_only_the_part_of_a_long_member_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encoded(1, 6_000_000)
    url = put("disk", tmp_path, "shard.tar", tar({"a.wav": b"1", "long.wav": clip}))
    expected = load(clip, 8000, start_seconds=300, seconds=1)
    monkeypatch.setattr(sources, "WHOLE", 2**20)
    monkeypatch.setattr(containers, "WHOLE", 2**20)
    reads = Reads(monkeypatch)
    np.testing.assert_array_equal(
        load(open_clip(f"tar://long.wav::{url}"), 8000, start_seconds=300, seconds=1), expected
    )
    assert reads.bytes() < len(clip) / 2


def test_only_the_part_of_a_long_object_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encoded(1, 6_000_000)
    url = put("memory", tmp_path, "long.wav", clip)
    assert open_clip(url) == clip
    monkeypatch.setattr(sources, "WHOLE", 2**20)
    monkeypatch.setattr(containers, "WHOLE", 2**20)
    reads = Reads(monkeypatch)
    part = load(open_clip(url), 8000, seconds=1)
    np.testing.assert_array_equal(part, load(clip, 8000, seconds=1))
    assert reads.bytes() < len(clip) / 2


# Columns of Parquet files -------------------------------------------------------------------------------------------


def table(kind: str, contents: list[bytes | None]) -> pa.Table:
    if kind == "struct":
        items = [{"bytes": content, "path": "x.wav"} for content in contents]
        return pa.table({"audio": pa.array(items, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    return pa.table(
        {"audio": pa.array(contents, pa.large_binary() if kind == "large" else pa.binary()), "other": contents}
    )


def write_parquet(folder: Path, rows: pa.Table, place: str = "disk", **options: object) -> str:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **options)
    return put(place, folder, "t.parquet", sink.getvalue().to_pybytes())


@pytest.mark.parametrize("kind", ["binary", "large", "struct"])
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_rows_are_read_unchanged(tmp_path: Path, place: str, kind: str) -> None:
    contents = [encoded(index, 100 + index) for index in range(23)]
    url = write_parquet(tmp_path, table(kind, contents), place, row_group_size=5)
    assert holds_audio(table(kind, contents).schema)
    listed, mtime = look_into("parquet", url)
    assert listed.names.to_pylist() == [f"audio/{row}" for row in range(1, 24)]
    sizes = listed.sizes.to_pylist()
    assert sizes == [sizes[row // 5 * 5] for row in range(23)]
    assert min(sizes) > 200
    assert mtime > 1e9
    order = [*range(23), *random.Random(1).sample(range(23), 23), 7, 7, 6]
    for row in order:
        assert open_clip(f"parquet://audio/{row + 1}::{url}") == contents[row]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_rows_are_read_forwards_and_row_groups_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    contents = [os.urandom(200_000) for _ in range(60)]
    url = write_parquet(tmp_path, table("struct", contents), row_group_size=20, compression=compression)
    size = Path(url).stat().st_size
    reads = Reads(monkeypatch)
    for row in range(60):
        open_clip(f"parquet://audio/{row + 1}::{url}")
    assert reads.bytes() < 1.5 * size
    put("disk", tmp_path, "u.parquet", Path(url).read_bytes())
    open_clip(f"parquet://audio/41::{tmp_path}/u.parquet")  # the first of the last group
    assert reads.bytes() < 0.5 * size


def test_a_great_row_group_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [os.urandom(100_000) for _ in range(100)]
    url = write_parquet(tmp_path, table("binary", contents), row_group_size=100, write_batch_size=5)
    monkeypatch.setattr(sources, "WHOLE", 2**20)
    monkeypatch.setattr(containers, "WHOLE", 2**20)
    reads = Reads(monkeypatch)
    assert open_clip(f"parquet://audio/1::{url}") == contents[0]
    assert reads.bytes() < 4_500_000


def test_rows_without_audio(tmp_path: Path) -> None:
    url = write_parquet(tmp_path, table("struct", [b"a", None, b""]))
    assert reason(f"parquet://audio/2::{url}") == "no audio in this row"
    assert open_clip(f"parquet://audio/3::{url}") == b""
    assert open_clip(f"parquet://audio/1::{url}") == b"a"
    for row in ("0", "4", "*", "-1", "x", "99999999999999999"):
        assert reason(f"parquet://audio/{row}::{url}") == "no such row: the table has 3"
    assert "no column sound" in reason(f"parquet://sound/1::{url}")
    nulls = pa.table({"audio": pa.array([None, {"bytes": b"b"}], pa.struct([("bytes", pa.binary())]))})
    url = write_parquet(tmp_path, nulls)
    assert reason(f"parquet://audio/1::{url}") == "no audio in this row"
    assert open_clip(f"parquet://audio/2::{url}") == b"b"


@pytest.mark.parametrize("column", [["a.wav"], [7], [{"path": "a.wav"}], [[b"a"]]])
def test_other_columns_are_no_audio(tmp_path: Path, column: list[object]) -> None:
    rows = pa.table({"audio": column})
    assert not holds_audio(rows.schema)
    url = write_parquet(tmp_path, rows)
    contents, _ = look_into("parquet", url)
    assert len(contents.names) == 0
    assert contents.problem == ""
    assert "no column audio of encoded files" in reason(f"parquet://audio/1::{url}")


def test_no_parquet(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.parquet")
    assert reason(f"parquet://audio/1::{tmp_path}/fifo.parquet") == "not a regular file"
    for content in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", os.urandom(500)):
        url = put("disk", tmp_path, "bad.parquet", content)
        assert reason(f"parquet://audio/1::{url}") == look_into("parquet", url)[0].problem


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    url = write_parquet(tmp_path, pa.table({"audio": pa.nulls(100_000, pa.binary())}))
    assert look_into("parquet", url)[0].problem.startswith("it claims 100000 rows in ")
    assert reason(f"parquet://audio/1::{url}").startswith("it claims 100000 rows in ")


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    changes=st.lists(st.tuples(st.integers(1, 3000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=3),
    options=st.sampled_from([{}, {"compression": "zstd"}, {"use_dictionary": False}, {"data_page_version": "2.0"}]),
)
def test_forged_parquet_files_are_read_or_refused(changes: list[tuple[int, bytes]], options: dict[str, object]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table("struct", [bytes([row]) * 300 for row in range(8)]), sink, row_group_size=4, **options)
    content = bytearray(sink.getvalue().to_pybytes())
    for back, what in changes:
        where = max(0, len(content) - back)
        content[where : where + len(what)] = what
    with tempfile.TemporaryDirectory() as folder:
        url = put("disk", Path(folder), "forged.parquet", bytes(content))
        look_into("parquet", url)
        for row in (1, 5, 8):
            try:
                assert isinstance(open_clip(f"parquet://audio/{row}::{url}"), bytes)
            except AudioError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_damage_stays_within_its_row_group(tmp_path: Path) -> None:
    contents = [os.urandom(5000) for _ in range(30)]
    url = write_parquet(tmp_path, table("binary", contents), row_group_size=10, compression="zstd")
    damaged = bytearray(Path(url).read_bytes())
    start = pq.read_metadata(url).row_group(1).column(0).data_page_offset
    damaged[start : start + 200] = bytes(200)
    put("disk", tmp_path, "t.parquet", bytes(damaged))
    for row in range(30):
        address = f"parquet://audio/{row + 1}::{url}"
        if 10 <= row < 20:
            assert reason(address)
        else:
            assert open_clip(address) == contents[row]


def test_an_abandoned_thread_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [os.urandom(300_000) for _ in range(30)]
    monkeypatch.setattr(sources, "WHOLE", 2**19)
    monkeypatch.setattr(containers, "WHOLE", 2**19)
    url = write_parquet(tmp_path, table("binary", contents), row_group_size=30, write_batch_size=2)
    open_clip(f"parquet://audio/1::{url}")
    stuck, release = threading.Event(), threading.Event()
    real = Container.read

    def read(container: Container, start: int, stop: int) -> bytes:
        if threading.current_thread() is left and not release.is_set():
            stuck.set()
            release.wait(20)
        return real(container, start, stop)

    found: list[object] = []
    left = threading.Thread(target=lambda: found.append(open_clip(f"parquet://audio/25::{url}")))
    monkeypatch.setattr(Container, "read", read)
    left.start()
    assert stuck.wait(20)
    assert open_clip(f"parquet://audio/9::{url}") == contents[8]
    release.set()
    left.join(20)
    assert found == [contents[24]]
    assert open_clip(f"parquet://audio/10::{url}") == contents[9]
