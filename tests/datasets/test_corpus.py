"""Clip tables of packed audio (tar files, Parquet columns) and of pools without a table (folders and shards)."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.logmel import LogMel
from raymae.audio.sources import open_clip
from raymae.config import DataConfig
from raymae.datasets.clips import load as load_clips
from raymae.datasets.overview import summary
from raymae.datasets.tables.table import CLIPS, ROWS, read_filenames, read_table
from raymae.features.write import write_shard
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded, tar

SOUNDS = {f"{index}.flac": encoded(index, format="FLAC") for index in range(6)}


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder to write to, on disk or in fsspec's memory."""
    return str(tmp_path / "set") if request.param == "disk" else f"memory://{tmp_path.name}/set"


def put(root: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        Folder(root).write_bytes(name, content)


def parquet(columns: dict[str, object], **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def message(url: str, *, pool: bool = False) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read_table(url, pool=pool)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(rows: pa.Table) -> list[bytes]:
    """The encoded files that the paths of a clip table lead to."""
    sounds = []
    for path in rows["path"].to_pylist():
        source = open_clip(path)
        sounds.append(Path(source).read_bytes() if isinstance(source, str) else source)
    return sounds


# Tables -------------------------------------------------------------------------------------------------------------


def test_members_in_a_table(root: str) -> None:
    put(root, {"shards/one.tar": tar(SOUNDS), "two.tar": tar({"./x/0.flac": SOUNDS["0.flac"], "empty.wav": b""})})
    put(root, {"loose.flac": SOUNDS["5.flac"]})
    names = [
        "loose.flac",
        "tar://3.flac::shards/one.tar",
        "tar://./x/0.flac::two.tar",
        "tar://1.flac::./shards/one.tar",
    ]
    names += ["tar://empty.wav::two.tar", "tar://absent.wav::two.tar", "tar://a.wav::absent.tar"]
    put(root, {"meta.csv": "\n".join(["filename,scene_label", *(f"{name},bus" for name in names)]).encode()})
    rows = read_table(f"{root}/meta.csv")
    assert rows.schema == ROWS
    assert rows["clip_id"].to_pylist() == names
    assert rows["scene_label"].to_pylist() == ["bus"] * 7
    assert contents(rows.slice(0, 5)) == [SOUNDS[f"{index}.flac"] for index in (5, 3, 0, 1)] + [b""]
    sizes = [len(SOUNDS[f"{index}.flac"]) for index in (5, 3, 0, 1)]
    assert rows["size"].to_pylist() == [*sizes, 0, -1, -1]
    mtime = rows["mtime"].to_pylist()
    assert mtime[1] == mtime[3] > 1e9
    assert mtime[6] == 0
    assert rows["path"][2].as_py().startswith("tar://x/0.flac::")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("tar://a.wav::../out.tar", "should stay in"),
        ("tar://a.wav::/etc/out.tar", "should stay in"),
        ("tar://a.wav::sub/../../out.tar", "should stay in"),
        ("parquet://audio/1::../out.parquet", "should stay in"),
        ("tar://a.wav::", "should be tar://member::shard.tar or parquet://column/row::table.parquet"),
        ("tar://a.wav", "should be tar://member::shard.tar"),
        ("tar://::a.tar", "should be tar://member::shard.tar"),
        ("parquet://audio::a.parquet", "should be tar://member::shard.tar"),
        ("parquet://audio/0::a.parquet", "should be tar://member::shard.tar"),
        ("tar://a.wav::sub/..", "should name an audio file"),
    ],
)
def test_addresses_stay_in_the_folder(root: str, name: str, right: str) -> None:
    if root.startswith("memory"):
        put(root.rpartition("/")[0], {"out.tar": tar(SOUNDS)})
    else:
        put(root, {"a.tar": tar(SOUNDS)})
    put(root, {"meta.csv": f"filename\na.wav\n{name}\n".encode()})
    error = message(f"{root}/meta.csv")
    assert f"column filename, row 3: {name!r}: {right}" in error


def test_links_out_of_the_folder_are_errors(tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_bytes(tar(SOUNDS))
    put(str(tmp_path / "set"), {"meta.csv": b"filename\ntar://0.flac::link.tar\n", "a.flac": b"x"})
    (tmp_path / "set/link.tar").symlink_to(tmp_path / "out.tar")
    assert "row 2: 'tar://0.flac::link.tar': should stay in" in message(f"{tmp_path}/set/meta.csv")
    assert "'link.tar': should stay in" in message(f"{tmp_path}/set", pool=True)


def test_one_member_in_two_rows(tmp_path: Path) -> None:
    put(str(tmp_path), {"a.tar": tar(SOUNDS), "meta.csv": b"filename\ntar://0.flac::a.tar\ntar://./0.flac::./a.tar\n"})
    with pytest.raises(ValueError, match=r"row 2 and meta row 3, column filename: both are the file tar://0.flac::/"):
        load_clips(DataConfig(dataset="table", tables=(f"{tmp_path}/meta.csv",)), None)


@pytest.mark.parametrize("struct", [False, True])
def test_audio_in_a_column(root: str, struct: bool, caplog: pytest.LogCaptureFixture) -> None:
    sounds = list(SOUNDS.values())
    audio = [{"bytes": sound, "path": None} for sound in sounds] if struct else sounds
    columns = {"audio": audio, "scene_label": ["bus", ""] * 3, "split": ["train", "val", "test"] * 2, "fold": [1] * 6}
    put(root, {"t.parquet": parquet(columns, row_group_size=4)})
    with caplog.at_level(logging.INFO):
        rows = read_table(f"{root}/t.parquet")
    assert "columns not used: fold (" in caplog.text
    assert rows.schema == ROWS
    assert contents(rows) == sounds
    assert rows["clip_id"].to_pylist() == [f"parquet://audio/{row}::t.parquet" for row in range(1, 7)]
    assert rows["row"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert rows["scene_label"].to_pylist() == ["bus", None] * 3
    assert rows["split"].to_pylist() == ["train", "val", "test"] * 2
    assert rows["source"].to_pylist() == ["t"] * 6
    assert min(rows["size"].to_pylist()) > 1000
    assert min(rows["mtime"].to_pylist()) > 1e9
    put(root, {"t.parquet": parquet(columns | {"filename": list("abcdef")})})
    again = read_table(f"{root}/t.parquet", pool=True)
    assert again["clip_id"].to_pylist() == list("abcdef")
    assert again["path"].to_pylist() == rows["path"].to_pylist() == read_filenames(f"{root}/t.parquet")
    put(root, {"meta.csv": b"filename,city\nparquet://audio/5::t.parquet,x\nparquet://audio/7::t.parquet,x\n"})
    named = read_table(f"{root}/meta.csv")
    assert contents(named.slice(0, 1)) == [sounds[4]]
    assert named["size"][1].as_py() == -1


def test_names_beside_audio_are_checked(root: str) -> None:
    put(root, {"t.parquet": parquet({"audio": [b"a", b"b"], "filename": ["a", "a"]})})
    assert "row 2: 'a': should be a name that no earlier row has" in message(f"{root}/t.parquet")
    put(root, {"t.parquet": parquet({"audio": [b"a", b"b"], "filename": ["a", ""]})})
    assert "row 2: '': should name an audio file" in message(f"{root}/t.parquet")
    put(root, {"t.parquet": parquet({"audio": ["a.wav"], "city": ["x"]})})
    assert "has no column filename; its columns are 'audio', 'city'; rename 'audio'?" in message(f"{root}/t.parquet")
    put(root, {"t.parquet": parquet({"audio": pa.array([], pa.binary())})})
    assert "has no rows" in message(f"{root}/t.parquet")


def test_a_table_reads_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(str(tmp_path), {"t.parquet": parquet({"audio": [os.urandom(100_000) for _ in range(100)]}, row_group_size=10)})
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or real(*args))
    assert len(read_table(f"{tmp_path}/t.parquet")) == 100
    assert 0 < sum(read) < 3_000_000


def test_a_table_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "meta.csv")
    assert "can't be read: it is not a regular file" in message(f"{tmp_path}/meta.csv")
    assert "not a regular file" in message("/dev/zero")


# Pools --------------------------------------------------------------------------------------------------------------


def test_a_tar_is_a_pool(root: str, caplog: pytest.LogCaptureFixture) -> None:
    side = {name.replace("flac", "json"): json.dumps({"scene": "bus"}).encode() for name in SOUNDS}
    members = {name: content for pair in zip(SOUNDS.items(), side.items(), strict=True) for name, content in pair}
    put(root, {"x.tar": tar({"b.FLAC": SOUNDS["5.flac"], **members, "._0.flac": b"\0", ".git/a.wav": b"x"})})
    rows = read_table(f"{root}/x.tar", pool=True, weight=2.0)
    assert rows.schema == ROWS
    names = ["b.FLAC", *SOUNDS]
    assert rows["clip_id"].to_pylist() == [f"tar://{name}::x.tar" for name in names]
    assert contents(rows) == [SOUNDS["5.flac"], *SOUNDS.values()]
    assert set(rows["split"].to_pylist()) == {"pool"}
    assert set(rows["source"].to_pylist()) == {"x"}
    assert set(rows["weight"].to_pylist()) == {2.0}
    assert rows["row"].to_pylist() == list(range(1, 8))
    assert rows["scene_label"].null_count == 7
    assert "left out: 6 members *.json of tar shards, 2 hidden members of tar shards" in caplog.text
    assert read_filenames(f"{root}/x.tar") == rows["path"].to_pylist()


def test_a_folder_is_a_pool(root: str, caplog: pytest.LogCaptureFixture) -> None:
    put(
        root, {"b/one.flac": b"1", "a.WAV": b"2", "c/d/e.ogg": b"3", "notes.txt": b"x", "more.txt": b"", ".x.wav": b"y"}
    )
    put(root, {"b/t.parquet": parquet({"audio": [b"4", b"5"]}), "b/meta.parquet": parquet({"filename": ["one.flac"]})})
    put(root, {"c/s.tar": tar({"z.wav": b"6", "y.wav": b"7"}), ".git/a.wav": b"8"})
    rows = read_table(f"{root}/", pool=True)
    names = ["a.WAV", "b/one.flac", "parquet://audio/1::b/t.parquet", "parquet://audio/2::b/t.parquet", "c/d/e.ogg"]
    assert rows["clip_id"].to_pylist() == [*names, "tar://z.wav::c/s.tar", "tar://y.wav::c/s.tar"]
    assert contents(rows) == [b"2", b"1", b"4", b"5", b"3", b"6", b"7"]
    assert [size for size in rows["size"].to_pylist() if size == 1] == [1] * 5
    assert set(rows["source"].to_pylist()) == {"set"}
    for part in ("2 hidden files", "2 files *.txt", "1 Parquet files without a column audio"):
        assert part in caplog.text
    assert rows["row"].to_pylist() == list(range(1, 8))


def test_pools_without_audio(root: str) -> None:
    put(root, {"notes/x.txt": b"x", "a.tar": tar({"a.json": b"{}"}), "b.tar": b"<html>404</html>" * 99})
    assert "can't be read: there is no audio (.wav, .flac" in message(f"{root}/notes", pool=True)
    assert "can't be read: no audio (.wav, .flac" in message(f"{root}/a.tar", pool=True)
    assert "can't be read: invalid header" in message(f"{root}/b.tar", pool=True)
    assert "can't be read" in message(f"{root}/absent.tar", pool=True)
    assert "can't be read" in message(f"{root}/absent", pool=True)
    assert "a folder or tar holds no labels" in message(f"{root}/a.tar")
    assert "a folder or tar holds no labels" in message(root)


def test_links_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(str(tmp_path), {"set/a/x.wav": b"x", "out.wav": b"secret"})
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    assert read_table(f"{tmp_path}/set", pool=True)["clip_id"].to_pylist() == ["a/x.wav"]
    assert "1 links to folders" in caplog.text
    (tmp_path / "set/out.wav").symlink_to(tmp_path / "out.wav")
    assert "'out.wav': should stay in" in message(f"{tmp_path}/set", pool=True)


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xe9.wav")).write_bytes(b"x")
    assert r"the file name '\udce9.wav' is not UTF-8; rename it" in message(str(tmp_path), pool=True)


def test_pools_join_a_data_set(root: str) -> None:
    put(root, {"own/a.wav": b"1", "own/meta.csv": b"filename,scene_label\na.wav,bus\n", "x.tar": tar(SOUNDS)})
    put(root, {"loose/a.wav": b"2"})
    pools = (f"{root}/x.tar", f"{root}/loose")
    clips = load_clips(DataConfig(dataset="table", tables=(f"{root}/own/meta.csv",), pool_tables=pools), None)
    assert clips.schema == CLIPS
    assert clips["split"].to_pylist() == ["train"] + ["pool"] * 7
    assert clips["source"].to_pylist() == ["meta"] + ["x"] * 6 + ["loose"]
    assert clips["clip_id"].to_pylist()[-1] == "2/a.wav"
    assert len(summary(clips)) == 4


def test_shards_can_be_predicted(tmp_path: Path) -> None:
    from raymae.serving.inputs import find_files

    put(str(tmp_path), {"s.tar": tar(SOUNDS), "t.parquet": parquet({"audio": list(SOUNDS.values())})})
    found = find_files((f"{tmp_path}/s.tar", f"{tmp_path}/t.parquet"))
    assert [open_clip(path) for path in found["path"].to_pylist()] == list(SOUNDS.values()) * 2


# From end to end ----------------------------------------------------------------------------------------------------


def test_packed_clips_give_the_features_of_their_files(root: str) -> None:
    put(root, SOUNDS | {"t.parquet": parquet({"audio": list(SOUNDS.values())}), "s.tar": tar(SOUNDS)})
    reader = ClipReader(TINY_AUDIO, 10)
    tables = [read_table(f"{root}/{name}", pool=True) for name in ("t.parquet", "s.tar")]
    for sound, *paths in zip(SOUNDS.values(), *(rows["path"].to_pylist() for rows in tables), strict=True):
        expected = LogMel(TINY_AUDIO)(load(sound, TINY_AUDIO.sample_rate)).astype(np.float16)
        for path in paths:
            np.testing.assert_array_equal(reader(path)[0], expected[: TINY_AUDIO.n_frames])


def test_exactly_the_broken_clips_are_quarantined(root: str) -> None:
    """Loose, in tars and in columns: every broken clip is listed with its reason, every good one is kept."""
    good, cut = SOUNDS["0.flac"], SOUNDS["1.flac"][:1000]
    broken = {"cut.flac": cut, "empty.wav": b"", "text.wav": b"no audio" * 99}
    put(root, {"good.flac": good} | broken)
    put(root, {"t.parquet": parquet({"audio": [good, None, *broken.values(), good]})})
    put(root, {"s.tar": tar({"good.flac": good} | broken), "page.tar": b"<html>404</html>" * 99})
    put(root, {"u.tar": tar({"good.flac": good, "lost.flac": good})[: 1024 + 2 * len(good)], "u.parquet": b"PAR1 no"})
    rows = read_table(root, pool=True)
    shards = Folder(f"{root}-shards")
    summary = write_shard(shards, "one.parquet", rows, ClipReader(TINY_AUDIO, 10))
    reasons = {entry["clip_id"]: entry["reason"] for entry in summary["quarantine"]}
    expected = [*broken, *(f"parquet://audio/{row}::t.parquet" for row in (2, 3, 4, 5))]
    expected += [*(f"tar://{name}::s.tar" for name in broken), "tar://*::page.tar", "parquet://*::u.parquet"]
    expected += ["tar://lost.flac::u.tar", "tar://*::u.tar"]
    assert sorted(reasons) == sorted(expected)
    assert summary["rows"] == 5 == len(rows) - len(expected)
    assert reasons["empty.wav"] == reasons["tar://empty.wav::s.tar"] == reasons["parquet://audio/4::t.parquet"]
    assert reasons["parquet://audio/2::t.parquet"] == "no audio in this row"
    assert reasons["tar://lost.flac::u.tar"].startswith("truncated: ")
    assert "unexpected end of data" in reasons["tar://*::u.tar"]
