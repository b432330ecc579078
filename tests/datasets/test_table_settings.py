"""Tables that name their columns otherwise and have their recordings elsewhere: options, and hints in errors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymae.config import Config, DataConfig, SplitConfig
from raymae.datasets.clips import load
from raymae.datasets.overview import check
from raymae.datasets.tables.settings import TableSettings
from raymae.serving.inputs import find_files
from raymae.storage.folder import open_storage


def table(folder: Path, *lines: str, files: tuple[str, ...] = (), **settings: Any) -> DataConfig:
    """The settings of a table of these lines; `files` are written below the folder `folder`/audio."""
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta/t.csv").write_text("\n".join(lines))
    for name in files:
        path = folder / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    return DataConfig(dataset="table", tables=(str(folder / "meta/t.csv"),), **settings)


def message(config: DataConfig) -> str:
    """The message of the ValueError that loading raises, in one line."""
    with pytest.raises(ValueError, match=r".") as caught:
        load(config, None, "single")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, name: str) -> Path:
    """A table with one filename."""
    folder.mkdir(parents=True)
    (folder / "t.csv").write_text(f"filename\n{name}\n")
    return folder / "t.csv"


# Filenames ----------------------------------------------------------------------------------------------------------


def test_names_below_the_audio_root(tmp_path: Path) -> None:
    lines = ("filename", "a.wav", "deep/b.wav", f"{tmp_path}/audio/c.wav", "tar://x.wav::s.tar")
    config = table(tmp_path, *lines, files=("a.wav", "deep/b.wav", "c.wav"), audio_root=str(tmp_path / "audio"))
    config = replace(config, max_bad_share=0.3)
    clips = load(config, None)
    root = (tmp_path / "audio").resolve()
    assert clips["path"].to_pylist()[:3] == [str(root / name) for name in ("a.wav", "deep/b.wav", "c.wav")]
    assert clips["size"].to_pylist() == [5, 5, 5, -1]
    assert clips["clip_id"].to_pylist() == list(lines[1:])


def test_an_audio_root_at_a_url() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/root/t.csv": b"filename\na.wav\nmemory://root/audio/b.wav\n", "/root/audio/a.wav": b"1"})
    fs.pipe("/root/audio/b.wav", b"22")
    config = DataConfig(dataset="table", tables=("memory://root/t.csv",), audio_root="memory://root/audio/")
    assert load(config, None)["size"].to_pylist() == [1, 2]
    fs.pipe("/root/t.csv", b"filename\na.wav\nmemory://root-2/b.wav\n")
    assert "row 3: 'memory://root-2/b.wav': should stay in memory://root/audio, data.audio_root" in message(config)


@pytest.mark.parametrize("name", ["../meta/t.csv", "/etc/passwd", "http://host/a.wav"])
def test_a_name_outside_of_the_audio_root_names_row_and_option(tmp_path: Path, name: str) -> None:
    config = table(tmp_path, "filename", "a.wav", name, files=("a.wav",), audio_root=str(tmp_path / "audio"))
    assert f"column filename, row 3: {name!r}: should stay in {tmp_path}/audio, data.audio_root" in message(config)
    outside = message(replace(config, audio_root=None, tables=(str(write(tmp_path / "x/y", name)),)))
    assert f"should stay in {tmp_path}/x/y, the table's own folder (--data.audio-root names another one)" in outside


def test_an_audio_root_has_to_be_a_folder(tmp_path: Path) -> None:
    for root in (str(tmp_path / "absent"), __file__, "memory://absent", "nosuch://x"):
        config = table(tmp_path, "filename", "a.wav", audio_root=root)
        assert message(config).startswith(f"data.audio_root = {root}")


@pytest.mark.parametrize("column", ["path", "size", "row", "id"])
def test_any_column_holds_the_filenames(tmp_path: Path, column: str) -> None:
    files = {"audio_root": str(tmp_path / "audio"), "filename_column": column, "filename_suffix": ".wav"}
    config = table(tmp_path, f"label,{column}", "bus,1", "tram,002", files=("1.wav", "002.wav"), **files)
    assert load(config, None)["clip_id"].to_pylist() == ["1.wav", "002.wav"]
    numbers = pa.table({column: [1, 2], "label": ["bus", "tram"]})
    pq.write_table(numbers, tmp_path / "meta/t.parquet")
    config = replace(config, tables=(str(tmp_path / "meta/t.parquet"),), max_bad_share=0.6)
    assert load(config, None)["size"].to_pylist() == [5, -1]
    wrong = table(tmp_path, f"label,{column}", "bus,1", "tram,1", **files)
    assert f"column {column}, row 3: '1': should be a name that no earlier row has" in message(wrong)


def test_predict_reads_tables_with_the_same_settings(tmp_path: Path) -> None:
    config = table(
        tmp_path, "fname", "1", files=("1.wav",), audio_root=str(tmp_path / "audio"), filename_column="fname",
        filename_suffix=".wav",
    )  # fmt: skip
    found = find_files(config.tables, TableSettings.of(config))
    assert found["path"].to_pylist() == [str((tmp_path / "audio/1.wav").resolve())]


def test_missing_files_name_the_options(tmp_path: Path) -> None:
    error = message(table(tmp_path, "filename", "1", files=("1.wav",)))
    assert "relative to their table's folder, or to --data.audio-root" in error
    assert "get it by --data.filename-suffix" in error


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("path,label", "rename 'path', or give --data.filename-column path (and --data.filename-suffix .wav where"),
        ("slice_file_name,class", "or give --data.filename-column slice_file_name"),
        ("fname,labels", "or give --data.filename-column fname"),
        ("File Name,x", "or give --data.filename-column 'File Name'"),
        ("x,y", "its columns are 'x', 'y'; --data.filename-column names another one"),
    ],
)
def test_a_table_without_filenames_names_the_options(tmp_path: Path, header: str, hint: str) -> None:
    assert hint in message(table(tmp_path, header, "a,b"))


def test_a_pool_table_is_not_described_by_the_options(tmp_path: Path) -> None:
    config = table(
        tmp_path, "fname", "a.wav", files=("a.wav",), filename_column="fname", audio_root=str(tmp_path / "audio")
    )
    (tmp_path / "audio/pool.csv").write_text("filename\na.wav\n")
    assert "both are the file" in message(replace(config, pool_tables=(f"{tmp_path}/audio/pool.csv",)))
    (tmp_path / "audio/pool.csv").write_text("path\na.wav\n")
    error = message(replace(config, pool_tables=(f"{tmp_path}/audio/pool.csv",)))
    assert error.endswith("rename 'path'?")


# Labels and splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["label", "class", "category", "Labels"])
def test_labels_in_another_column_are_a_hint(tmp_path: Path, column: str) -> None:
    rows, files = ("a.wav,bus", "b.wav,tram"), ("a.wav", "b.wav")
    config = table(tmp_path, f"filename,{column}", *rows, files=files, audio_root=str(tmp_path / "audio"))
    hint = f"no clip of split train has a scene_label.*; --data.label-column {column} reads the labels"
    assert re.search(hint, message(config))
    problems = check(Config(data=config), open_storage(str(tmp_path / "storage")), "single", True)["problems"]
    assert any(re.search(hint, problem) for problem in problems)
    named = replace(config, label_column="lable")
    assert message(named).endswith(f"; --data.label-column {column}?")
    assert load(replace(config, label_column=column), None, "single")["scene_label"].to_pylist() == ["bus", "tram"]


SPLITS = {"valid": "val", "Validation": "val", "training": "train", "Train": "train", "Test": "test"}
SPLITS |= {"Testing": "test", "TEST_B": "test_b", "val ": "val", "Pool": "pool"}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_of_another_name_is_a_hint(tmp_path: Path, name: str) -> None:
    error = message(table(tmp_path, "filename,split", f"a.wav,{name}"))
    right = "should be train, val, pool (pre-training only) or begin with test"
    assert error.endswith(f"column split, row 2: {name!r}: {right}; write {SPLITS[name]} for {name!r}")


# Folds --------------------------------------------------------------------------------------------------------------


def folds(folder: Path, *lines: str, **settings: Any) -> DataConfig:
    """The settings of a table with folds."""
    names = tuple(line.split(",")[0] for line in lines)
    root = str(folder / "audio")
    return table(
        folder, "filename,fold,scene_label", *lines, files=names, audio_root=root, fold_column="fold", **settings
    )


def test_a_fold_is_test_and_the_others_train(tmp_path: Path) -> None:
    lines = [f"{number}.wav,{number % 3},{'ab'[number // 3 % 2]}" for number in range(30)]
    clips = load(folds(tmp_path, *lines, test_fold="1"), None, "single")
    assert clips["split"].to_pylist() == ["test" if number % 3 == 1 else "train" for number in range(30)]
    clips = load(folds(tmp_path, *lines, test_fold="1", split=SplitConfig(val_share=0.2)), None, "single")
    splits = clips["split"].to_pylist()
    assert [split == "test" for split in splits] == [number % 3 == 1 for number in range(30)]
    assert splits.count("val") == 6


def test_folds_may_be_in_the_column_split(tmp_path: Path) -> None:
    config = table(tmp_path, "filename,split", "a.wav,1", "b.wav, 2", files=("a.wav", "b.wav"))
    config = replace(config, audio_root=str(tmp_path / "audio"), fold_column="split", test_fold="2")
    assert load(config, None)["split"].to_pylist() == ["train", "test"]


def test_wrong_folds(tmp_path: Path) -> None:
    lines = ("a.wav,1,x", "b.wav,10,x", "c.wav,2,x")
    assert "data.test_fold = '3' is not a fold of the tables; they have 1, 2, 10" in message(
        folds(tmp_path, *lines, test_fold="3")
    )
    assert "needs data.test_fold, the fold that is split test, one of 1, 2, 10; --folds" in message(
        folds(tmp_path, *lines)
    )
    assert "column fold, row 3: '': should name the clip's fold" in message(folds(tmp_path, "a.wav,1,x", "b.wav,,x"))
    both = table(tmp_path, "filename,fold,split", "a.wav,1,train", fold_column="fold", test_fold="1")
    assert "column split, row 2: 'train': should be empty, as data.fold_column = fold decides the split" in message(
        both
    )
    assert "has no column fold" in message(table(tmp_path, "filename", "a.wav", fold_column="fold", test_fold="1"))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"test_fold": "1"}, "data.test_fold = '1' needs data.fold_column"),
        ({"fold_column": "group"}, "data.fold_column = 'group' must be another column"),
        ({"fold_column": "f", "split": SplitConfig(kind="session")}, "and data.split.kind = session both decide"),
        ({"fold_column": "f", "split": SplitConfig(file="x")}, "and data.split.file = x both decide"),
        ({"filename_column": "scene_label"}, "must be another column than scene_label, city"),
        ({"filename_suffix": " "}, "must not be blank"),
        ({"dataset": "tau2019", "audio_root": "s3://me:secret@b/x"}, r"audio_root = 's3://\*\*\*@b/x' has no effect"),
        ({"dataset": "synthetic", "merge_labels": True}, "merge_labels = True has no effect with data.dataset"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        DataConfig(**{"dataset": "table", **settings})
