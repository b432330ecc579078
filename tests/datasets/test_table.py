"""Clip tables from CSV and Parquet: values survive, and mistakes give errors that name file, row and column."""

import csv
import io
import logging
import os
import tempfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.config import DataConfig
from raymae.datasets.checks import check_labels
from raymae.datasets.clips import DATASETS, load
from raymae.datasets.overview import summary
from raymae.datasets.tables.table import CLIPS, ROWS, MetadataTable, read_filenames, read_table
from tests.support.paths import SHARED

Row = dict[str, str]


def make(folder: Path, rows: list[Row], name: str = "meta.csv", *, files: bool = True) -> str:
    """Write a CSV table of `rows` and dummy audio files."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows if files else []:
        path = folder / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    return str(folder / name)


def load_table(*urls: str, pool: tuple[str, ...] = (), weights: tuple[float, ...] = (), bad: float = 0.05) -> pa.Table:
    config = DataConfig(dataset="table", tables=urls, pool_tables=pool, pool_weights=weights, max_bad_share=bad)
    return load(config, None)


def message(*urls: str, **kwargs: tuple[str, ...]) -> str:
    """The message of the ValueError that loading raises, in one line."""
    with pytest.raises(ValueError, match=r".") as caught:
        load_table(*urls, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Values -------------------------------------------------------------------------------------------------------------


def test_columns_and_defaults(tmp_path: Path) -> None:
    url = make(
        tmp_path,
        [
            {"filename": "a.wav", "scene_label": "NA", "city": "007", "device": "1.0", "group": "g", "split": "train"},
            {"filename": "sub/b.wav"},
        ],
    )
    clips = load_table(url)
    assert clips.schema == CLIPS
    first, second = clips.to_pylist()
    assert (first["scene_label"], first["city"], first["device"], first["group"]) == ("NA", "007", "1.0", "g")
    assert [second[name] for name in ("scene_label", "city", "device", "group")] == [None] * 4
    assert second["split"] == "train"
    assert first["path"] == str((tmp_path / "a.wav").resolve())
    assert first["mtime"] == (tmp_path / "a.wav").stat().st_mtime
    assert (first["clip_id"], first["source"], first["weight"], first["size"]) == ("a.wav", "meta", 1.0, 5)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00/"), min_size=1, max_size=12)
NAMES = TEXT.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(NAMES, st.one_of(st.just(""), TEXT)), min_size=1, max_size=6, unique_by=lambda row: row[0]),
    tab=st.booleans(),
    bom=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n"]),
    blank_line=st.booleans(),
)
def test_any_text_survives_csv(
    rows: list[tuple[str, str]], tab: bool, bom: bool, line_end: str, blank_line: bool
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tab else ",", lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["filename", "city"])
    if blank_line:
        text.write(line_end)
    writer.writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode())
        table = read_table(str(path))
    assert table["clip_id"].to_pylist() == [name for name, _ in rows]
    assert table["city"].to_pylist() == [city or None for _, city in rows]
    assert table["row"][0].as_py() == 2 + blank_line


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.tuples(NAMES, st.one_of(st.none(), TEXT)), min_size=1, max_size=6, unique_by=lambda row: row[0])
)
def test_any_text_survives_parquet(rows: list[tuple[str, str | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        pq.write_table(pa.table({"filename": [n for n, _ in rows], "city": [c for _, c in rows]}), path)
        table = read_table(str(path))
    assert table["clip_id"].to_pylist() == [name for name, _ in rows]
    assert table["city"].to_pylist() == [city for _, city in rows]


def test_parquet_values_become_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "filename": pa.array(["a", "b"]).dictionary_encode(),
            "device": [7, None],
            "city": ["", "x"],
            "group": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    rows = read_table(str(tmp_path / "t.parquet"))
    assert rows["device"].to_pylist() == ["7", None]
    assert rows["city"].to_pylist() == [None, "x"]
    assert rows["group"].to_pylist() == [None, None]
    assert rows["row"].to_pylist() == [1, 2]


def test_rows_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('filename,city\n\na.wav,x\n"b\n.wav",y\n\n\nc.wav,z\n\n')
    assert read_table(str(tmp_path / "t.csv"))["row"].to_pylist() == [3, 4, 8]


def test_other_columns_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = make(tmp_path, [{"filename": "a.wav", "label": "bus", "fold": "1"}])
    with caplog.at_level(logging.INFO):
        load_table(url)
    assert "columns not used: label, fold" in caplog.text


def test_missing_and_empty_files_keep_their_rows(tmp_path: Path) -> None:
    url = make(tmp_path, [{"filename": f"{index}.wav"} for index in range(4)])
    (tmp_path / "1.wav").write_bytes(b"")
    (tmp_path / "2.wav").unlink()
    clips = load_table(url, bad=0.3)
    assert clips["size"].to_pylist() == [5, 0, -1, 5]
    assert "files missing: 1, empty: 1; they will be quarantined" in summary(clips)


def test_home_and_relative_paths_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, [{"filename": "a.wav"}])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    expected = [str((tmp_path / "a.wav").resolve())]
    assert read_filenames("~/meta.csv") == read_filenames(Path("meta.csv")) == expected


def test_remote_table() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/set/meta.csv": b"filename\naudio/a.wav\nb.wav\n", "/set/audio/a.wav": b"sound", "/set-2/x.wav": b"x"})
    rows = read_table("memory://set/meta.csv").to_pylist()
    assert [row["size"] for row in rows] == [5, -1]
    assert rows[0]["mtime"] > 1e9
    with fsspec.open(rows[0]["path"]) as file:
        assert file.read() == b"sound"
    fs.pipe("/set/out.csv", b"filename\n../set-2/x.wav\n")
    with pytest.raises(ValueError, match=r"row 2: '\.\./set-2/x\.wav': should stay in memory://set"):
        read_table("memory://set/out.csv")


# Several tables -----------------------------------------------------------------------------------------------------


def test_clip_ids_stay_unique(tmp_path: Path) -> None:
    first = make(tmp_path / "x", [{"filename": "a.wav"}, {"filename": "1/a.wav"}])
    second = make(tmp_path / "y", [{"filename": "a.wav"}])
    third = make(tmp_path / "z", [{"filename": "b.wav"}])
    assert load_table(first, second, third)["clip_id"].to_pylist() == ["a.wav", "1/a.wav", "1/1/a.wav", "b.wav"]


def test_pool_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = make(tmp_path / "own", [{"filename": "a.wav", "scene_label": "bus"}])
    first = make(tmp_path / "p", [{"filename": "p.wav", "scene_label": "tram", "split": "anything"}], "more.csv")
    second = make(tmp_path / "q", [{"filename": "q.wav"}])
    with caplog.at_level(logging.INFO):
        clips = load_table(own, pool=(first, second), weights=(2.0, 0.5))
    assert clips["split"].to_pylist() == ["train", "pool", "pool"]
    assert clips["scene_label"].to_pylist() == ["bus", None, None]
    assert clips["weight"].to_pylist() == [1.0, 2.0, 0.5]
    assert clips["source"].to_pylist() == ["meta", "more", "meta"]
    assert "columns not used: split" in caplog.text
    assert "labels not used because their clips are for pre-training only: 1" in caplog.text
    assert load_table(own, pool=(first,))["weight"].to_pylist() == [1.0, 1.0]


def test_labels_of_the_pool_split_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = make(tmp_path, [{"filename": "a.wav", "scene_label": "bus", "split": "pool"}])
    with caplog.at_level(logging.INFO):
        assert load_table(url)["scene_label"].to_pylist() == [None]
    assert "pre-training only: 1" in caplog.text


def test_every_dataset_takes_pool_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make(tmp_path / "own", [{"filename": "a.wav"}])
    pool = make(tmp_path / "p", [{"filename": "p.wav"}])
    monkeypatch.setitem(DATASETS, "mine", lambda config, folder: read_table(own))
    clips = load(DataConfig(dataset="mine", pool_tables=(pool,)), tmp_path)
    assert clips["split"].to_pylist() == ["train", "pool"]


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_unknown_dataset_and_no_table() -> None:
    with pytest.raises(ValueError, match=r"'tabel' is unknown .did you mean table"):
        load(DataConfig(dataset="tabel"), None)
    with pytest.raises(ValueError, match=r"needs --data\.tables"):
        load(DataConfig(dataset="table"), None)
    with pytest.raises(ValueError, match="give a local folder as --storage"):
        load(DataConfig(dataset="synthetic"), None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "can't be read: it is empty"),
        (b"filename\n", "has no rows"),
        (b"filename,city\na.wav,x\nb.wav\n", "Row #3: Expected 2 columns, got 1"),
        (b"filename,city\na.wav,Sao Paulo\nb.wav,S\xe3o Paulo\n", "row 3: byte 0xe3 is not UTF-8"),
        ("filename\na.wav\n".encode("utf-16"), "row 1: byte 0xff is not UTF-8"),
        (b"PAR1 and nothing else", "can't be read as a CSV or Parquet table"),
        (b"filename,city,city\na.wav,x,y\n", "has the column city more than once"),
        (b"Filename,city\na.wav,x\n", "has no column filename; its columns are 'Filename', 'city'; rename 'Filename'"),
        (b"file_name\na.wav\n", "rename 'file_name'"),
        (b"path,x\na.wav,1\n", "rename 'path'"),
        (b"a,b\nc,d\n", "has no column filename; its columns are 'a', 'b'; --data.filename-column names"),
    ],
)
def test_unreadable_tables(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        load_table(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["absent.csv", "nosuch://bucket/t.csv", "memory://absent/t.csv", "."])
def test_absent_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "can't be read: " in message(url)


def test_credentials_stay_out_of_messages() -> None:
    assert "secret" not in message("memory://user:secret@absent/t.csv")


def test_empty_and_repeated_filenames(tmp_path: Path) -> None:
    url = make(tmp_path, [{"filename": name, "city": "x"} for name in ("a", "", "b", "")], files=False)
    assert "column filename, row 3: '', row 5: '': should name an audio file" in message(url)
    url = make(tmp_path, [{"filename": name} for name in "abcaabca"])
    assert "row 5: 'a', row 6: 'a', row 7: 'b' and 2 more: should be a name that no earlier row has" in message(url)


def test_unknown_split(tmp_path: Path) -> None:
    splits = ["train", "val", "pool", "test", "test_unseen", "valid", "Test", "dev"]
    url = make(tmp_path, [{"filename": f"{index}", "split": split} for index, split in enumerate(splits)])
    assert f"{url}, column split, row 7: 'valid', row 8: 'Test', row 9: 'dev': should be train, val, pool" in message(
        url
    )


@pytest.mark.parametrize("name", ["../out.wav", "/etc/passwd", "sub/../../out.wav", "link.wav", "folder/out.wav"])
def test_paths_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "out.wav").write_bytes(b"secret")
    url = make(tmp_path / "set", [{"filename": "a.wav"}, {"filename": name}], files=False)
    (tmp_path / "set/link.wav").symlink_to(tmp_path / "out.wav")
    (tmp_path / "set/folder").symlink_to(tmp_path)
    assert f"row 3: {name!r}: should stay in {tmp_path}/set" in message(url)


@pytest.mark.parametrize("name", [".", "..", "sub/", "sub/..", "a\x00.wav"])
def test_filenames_name_files(tmp_path: Path, name: str) -> None:
    url = make(tmp_path, [{"filename": name}], files=False)
    assert "should name an audio file" in message(url)


def test_links_and_absolute_paths_within_the_folder(tmp_path: Path) -> None:
    names = ["sub/a.wav", "b.wav", "sub/../c.wav", str(tmp_path / "d.wav")]
    (tmp_path / "real").mkdir()
    (tmp_path / "sub").symlink_to("real")
    url = make(tmp_path, [{"filename": name} for name in names])
    (tmp_path / "b.wav").unlink()
    (tmp_path / "b.wav").symlink_to("sub/a.wav")
    root = tmp_path.resolve()
    clips = load_table(url)
    assert clips["path"].to_pylist() == [str(root / name) for name in ("real/a.wav", "b.wav", "c.wav", "d.wav")]
    assert clips["size"].to_pylist() == [5] * 4


def test_one_file_in_two_rows(tmp_path: Path) -> None:
    first = make(tmp_path, [{"filename": "a.wav"}, {"filename": "b.wav"}], "one.csv")
    second = make(tmp_path, [{"filename": "./b.wav"}], "two.csv")
    assert f"one row 3 and two row 2, column filename: both are the file {tmp_path.resolve()}/b.wav" in message(
        first, pool=(second,)
    )


def test_too_many_missing_files(tmp_path: Path) -> None:
    url = make(tmp_path, [{"filename": f"{index}"} for index in range(5)], files=False)
    (tmp_path / "0").write_bytes(b"sound")
    error = message(url)
    assert "4 of 5 files are missing, more than data.max_bad_share = 0.05" in error
    assert f"meta row 3: {tmp_path.resolve()}/1" in error
    assert "and 1 more" in error


@pytest.mark.parametrize("trained", ["train", "pool"])
@pytest.mark.parametrize("tested", ["val", "test_seen"])
def test_a_group_on_both_sides(tmp_path: Path, trained: str, tested: str) -> None:
    rows = [
        {"filename": "a", "group": "g1", "split": trained},
        {"filename": "b", "group": "g2", "split": tested},
        {"filename": "c", "group": "g1", "split": tested},
        {"filename": "d", "group": "", "split": trained},
        {"filename": "e", "group": "", "split": tested},
    ]
    assert f"'g1' is in {trained} (meta row 2) and in {tested} (meta row 4)" in message(make(tmp_path, rows))
    load_table(make(tmp_path, [rows[0], rows[1], rows[3], rows[4]]))


def test_labels(tmp_path: Path) -> None:
    rows = [
        {"filename": "a", "scene_label": "", "split": "train"},
        {"filename": "b", "scene_label": "bus", "split": "val"},
        {"filename": "c", "scene_label": "", "split": "test"},
    ]
    with pytest.raises(ValueError, match="no clip of split train has a scene_label"):
        check_labels(read_table(make(tmp_path / "x", rows)), "single")
    rows[0]["scene_label"] = "tram"
    with pytest.raises(ValueError, match=r"'bus' in 1 held-out clips \(first meta row 3, b, split val\).* there: tram"):
        check_labels(read_table(make(tmp_path / "y", rows)), "single")
    rows[1]["scene_label"] = "tram"
    with pytest.raises(ValueError, match="'tram' is the only class of the training clips"):
        check_labels(read_table(make(tmp_path / "z", rows)), "single")
    rows.append({"filename": "d", "scene_label": "bus", "split": "train"})
    check_labels(read_table(make(tmp_path / "w", rows)), "single")


def test_labels_are_checked_where_they_are_to_be_learned(tmp_path: Path) -> None:
    config = DataConfig(dataset="table", tables=(make(tmp_path, [{"filename": "a", "scene_label": "bus;tram"}]),))
    assert load(config, None)["scene_label"].to_pylist() == ["bus;tram"]
    assert load(config, None, "multi")["scene_label"].to_pylist() == ["bus;tram"]
    with pytest.raises(ValueError, match=r"scene_label, meta row 2: 'bus;tram': should be one class; .* multi"):
        load(config, None, "single")


# Summary ------------------------------------------------------------------------------------------------------------


def test_summary(tmp_path: Path) -> None:
    rows = [
        {"filename": f"{index}", "scene_label": label, "city": city, "group": f"g{index}", "split": split}
        for index, (label, city, split) in enumerate(
            [("bus", "x", "pool"), ("bus", "x", "test"), ("tram", "x", ""), ("bus", "y", "train"), ("", "y", "train")]
        )
    ]
    lines = summary(load_table(make(tmp_path, rows)))
    assert [line.split() for line in lines] == [
        ["split", "clips", "labelled", "classes", "cities", "devices", "groups"],
        ["train", "3", "2", "2", "2", "-", "3"],
        ["test", "1", "1", "1", "1", "-", "1"],
        ["pool", "1", "-", "-", "1", "-", "1"],
        ["labelled", "for", "training:", "bus", "1,", "tram", "1"],
    ]


# Published tables ---------------------------------------------------------------------------------------------------


def test_published_metadata_is_read() -> None:
    folder = SHARED / "data/metadata"
    if not folder.is_dir():
        pytest.skip("no published metadata here")
    tau = read_table(str(folder / "tau2020_mobile/fold1_train.csv"))
    assert len(tau) in range(13_962, 13_966)
    assert len(tau["scene_label"].unique()) == 10
    cas = read_table(str(folder / "cas2023/APSIPA2025_GC_ASC_dev_metadata.csv"))
    assert (len(cas), cas["scene_label"].null_count) == (8700, 6960)
    assert cas.schema == ROWS


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_file_of_the_kernel_is_no_table() -> None:
    with pytest.raises(ValueError, match=r"/proc/kmsg can't be read: (it is empty|.*[Pp]ermission)"):
        read_table("/proc/kmsg")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_time_for_a_wide_table_grows_with_its_width(tmp_path: Path, suffix: str) -> None:
    """Counted, not timed: how often a column's name is compared with another."""
    compared = [0]

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            compared[0] += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    table = MetadataTable.open(str(tmp_path / f"t.{suffix}"))
    for width in (1000, 2000):
        compared[0] = 0
        table._known([Name("filename"), *(Name(f"c{number}") for number in range(width))], ("filename", "city"), False)
        assert compared[0] < 20 * width


def test_a_message_names_some_of_many_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",".join(f"c{number}" for number in range(1000)) + "\n")
    with pytest.raises(ValueError, match=r"its columns are 'c0', .*'c19' and 980 more$"):
        read_table(str(tmp_path / "t.csv"))


def test_a_small_file_of_many_rows_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, count = tmp_path / "t.parquet", 3_000_000
    pq.write_table(pa.table({"filename": pa.repeat("a.wav", count)}), path)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=f"claims {count} rows in {path.stat().st_size} bytes"):
        read_table(str(path))


def test_names_in_a_sequence_may_be_compressed_as_well_as_they_can_be(tmp_path: Path) -> None:
    path, count = tmp_path / "t.parquet", 200_000
    names = pa.table({"filename": [f"{number:08d}.wav" for number in range(count)]})
    pq.write_table(
        names, path, compression="zstd", use_dictionary=False, column_encoding={"filename": "DELTA_BYTE_ARRAY"}
    )
    assert count > 5 * path.stat().st_size
    assert len(read_table(str(path))) == count
