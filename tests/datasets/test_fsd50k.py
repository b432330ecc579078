"""FSD50K as it is distributed: its official splits, its lists of classes, and mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import gather, load
from raymae.datasets.labels import class_set
from tests.support.published import message, recordings, write

TRUTH = "FSD50K.ground_truth"
FILES = {
    "vocabulary.csv": ["0,Accordion,/m/0mkg", "1,Dog,/m/0bt9lr", "2,Bark,/m/05tny_"],
    "dev.csv": [
        "fname,labels,mids,split",
        '10,"Bark,Dog","/m/05tny_,/m/0bt9lr",train',
        "11,Accordion,/m/0mkg,train",
        "12,Dog,/m/0bt9lr,val",
    ],
    "eval.csv": ["fname,labels,mids", '20,"Dog,Accordion","/m/0bt9lr,/m/0mkg"'],
}


def folder(root: Path) -> Path:
    for name, lines in FILES.items():
        write(root / TRUTH / name, lines)
    recordings(root / "FSD50K.dev_audio", ["10.wav", "11.wav", "12.wav"])
    recordings(root / "FSD50K.eval_audio", ["20.wav"])
    return root


def test_the_official_splits_and_classes(tmp_path: Path) -> None:
    clips = load(DataConfig(dataset="fsd50k", root=str(folder(tmp_path))), None, "multi")
    assert clips["clip_id"].to_pylist() == ["10", "11", "12", "20"]
    assert clips["split"].to_pylist() == ["train", "train", "val", "test"]
    assert clips["scene_label"].to_pylist() == ["Bark;Dog", "Accordion", "Dog", "Dog;Accordion"]
    assert class_set(clips["scene_label"], "multi") == ["Accordion", "Bark", "Dog"]
    assert clips["group"].null_count == 4
    assert clips["size"].unique().to_pylist() == [5]


def test_counts_that_differ_are_said(tmp_path: Path) -> None:
    found = gather(DataConfig(dataset="fsd50k", root=str(folder(tmp_path))), None)[1]
    assert found[:3] == [
        "fsd50k: 2 clips of split train, the whole data set has 36,796",
        "fsd50k: 1 clips of split val, the whole data set has 4,170",
        "fsd50k: 1 clips of split test, the whole data set has 10,231",
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "error"),
    [
        (
            "dev.csv",
            "Bark,Dog",
            "Bark,Cat",
            r"dev\.csv, column labels, row 2: 'Bark,Cat': should be classes of vocabulary",
        ),
        ("dev.csv", "11,Accordion", "11,", r"dev\.csv, column labels, row 3: ''"),
        ("dev.csv", ",val", ",valid", r"dev\.csv, column split, row 4: 'valid': should be train or val"),
        ("eval.csv", "20,", "12,", r"dev\.csv, column clip_id, row 4: '12': should not be in eval\.csv, too"),
        ("eval.csv", "labels", "label", r"eval\.csv has no column labels"),
        ("vocabulary.csv", "1,Dog,", "1,Dog", r"vocabulary\.csv, row 2: should be the number, label and id of a class"),
    ],
)
def test_wrong_rows(tmp_path: Path, file: str, old: str, new: str, error: str) -> None:
    path = folder(tmp_path) / TRUTH / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert re.search(error, found := message("fsd50k", tmp_path)), found


@pytest.mark.parametrize("name", FILES)
def test_a_missing_table_is_named(tmp_path: Path, name: str) -> None:
    (folder(tmp_path) / TRUTH / name).unlink()
    assert f"holds no {TRUTH}/{name}" in message("fsd50k", tmp_path)


def test_spare_and_missing_recordings_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recordings(folder(tmp_path) / "FSD50K.eval_audio/more", ["21.wav"])
    (tmp_path / "FSD50K.dev_audio/11.wav").unlink()
    gather(DataConfig(dataset="fsd50k", root=str(tmp_path)), None)
    assert "in no table and not used: FSD50K.eval_audio/more/21.wav" in caplog.text
    assert "1 of 4 files are missing: FSD50K.dev_audio/11.wav" in caplog.text
