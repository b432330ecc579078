"""ESC-50, ESC-10 and UrbanSound8K as they are distributed: folds, groups, counts and mistakes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.compute as pc
import pytest

from raymae.config import Config, DataConfig, SplitConfig
from raymae.datasets.clips import gather, load
from raymae.pipeline.repeats import runs_of
from tests.support.audio_files import write_tone
from tests.support.published import message, recordings, rows_of, write

HEADER = "filename,fold,target,category,esc10,src_file,take"
CLASSES = {0: ("dog", True), 6: ("hen", False), 10: ("rain", True)}


def esc(root: Path, folds: int = 5, takes: str = "AB") -> Path:
    """ESC-50's folder with three classes: one source per class and fold, two clips of each; one hen is in two folds."""
    lines = [HEADER]
    for fold in range(1, folds + 1):
        for target, (category, in_esc10) in CLASSES.items():
            source = 7 if target == 6 and fold in (2, 3) else 100 * fold + target
            for take in takes if source != 7 else takes[fold - 2]:
                name = f"{fold}-{source}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},{in_esc10},{source},{take}")
    write(root / "meta/esc50.csv", lines)
    recordings(root / "audio", [line.split(",")[0] for line in lines[1:]])
    return root


def urban(root: Path) -> Path:
    """UrbanSound8K's folder with two classes: one source per class and fold, three slices of each."""
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, name in enumerate(("air_conditioner", "car_horn")):
            for piece in range(3):
                clip = f"{fold}0{number}-{number}-0-{piece}.wav"
                lines.append(f"{clip},{fold}0{number},{piece}.0,{piece + 4}.0,1,{fold},{number},{name}")
        recordings(root / f"audio/fold{fold}", [line.split(",")[0] for line in lines[-6:]])
    write(root / "metadata/UrbanSound8K.csv", lines)
    return root


FOLDERS = {"esc50": (esc, 5, 28), "esc10": (esc, 5, 20), "urbansound8k": (urban, 10, 60)}


@pytest.mark.parametrize("name", FOLDERS)
def test_all_folds_can_be_run_in_turn(name: str) -> None:
    config = Config(data=DataConfig(dataset=name, root="data"), folds=True)
    tested = [one.data.test_fold for one in runs_of(config).values()]
    assert tested == [str(fold) for fold in range(1, FOLDERS[name][1] + 1)]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_clip_is_tested_once_and_no_source_is_on_both_sides(name: str, tmp_path: Path) -> None:
    make, folds, count = FOLDERS[name]
    root = make(tmp_path / name)
    tested: Counter[str] = Counter()
    for fold in range(1, folds + 1):
        clips = load(DataConfig(dataset=name, root=str(root), test_fold=str(fold)), None, "single")
        assert len(clips) == count
        assert clips["size"].unique().to_pylist() == [5]
        assert clips["scene_label"].null_count == clips["group"].null_count == 0
        test = clips.filter(pc.equal(clips["split"], "test"))
        train = clips.filter(pc.equal(clips["split"], "train"))
        assert not {*test["group"].to_pylist()} & {*train["group"].to_pylist()}
        tested.update(test["clip_id"].to_pylist())
    assert set(tested.values()) == {1}
    assert len(tested) == count
    last = load(DataConfig(dataset=name, root=str(root)), None)
    assert last.equals(clips)


def test_a_source_in_two_folds_is_one_group_where_a_split_is_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = esc(tmp_path)
    official = rows_of("esc50", root)
    assert {"7 2", "7 3"} <= set(official["group"].to_pylist())
    assert "esc50: 1 recordings have clips in several folds, as it is distributed, which may leak" in caplog.text
    config = DataConfig(dataset="esc50", root=str(root), split=SplitConfig(kind="session", test_share=0.3))
    drawn, _ = gather(config, None)
    assert Counter(drawn["group"].to_pylist())["7"] == 2


def test_counts_that_differ_are_said(tmp_path: Path) -> None:
    found = gather(DataConfig(dataset="esc10", root=str(esc(tmp_path / "esc"))), None)[1]
    assert "esc10: 20 clips, the whole data set has 400" in found
    assert "esc10: 2 classes, the whole data set has 10" in found
    found = gather(DataConfig(dataset="urbansound8k", root=str(urban(tmp_path / "urban"))), None)[1]
    assert found[0] == "urbansound8k: 60 clips, the whole data set has 8,732"


def test_missing_and_spare_recordings_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = esc(tmp_path)
    (root / "audio/1-100-A-0.wav").unlink()
    write_tone(root / "audio/own.wav", 440)
    rows = rows_of("esc50", root)
    assert "1 of 28 files are missing: audio/1-100-A-0.wav" in caplog.text
    assert "1 recordings are in no table and not used: audio/own.wav" in caplog.text
    assert Counter(rows["size"].to_pylist()) == {5: 27, -1: 1}


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("filename,fold", "file,fold", r"esc50\.csv has no column filename; its columns are file, fold"),
        (
            "1-100-A-0.wav,1,",
            "1-100-A-0.wav,2,",
            "filename, row 2: '1-100-A-0.wav': should be fold-src_file-take-target",
        ),
        ("0,dog,True,100,A", "0,,True,100,A", "category, row 2: ''.*should be a class"),
        ("0,dog,True,100,A", "0,dog,yes,100,A", "esc10, row 2: 'yes': should be True or False"),
        ("dog,True,100,A", "dog,True,100", r"esc50\.csv, row 2: should have 7 values, as the header"),
        ("1-100-B-0.wav,1,0,dog,True,100,B", "1-100-A-0.wav,1,0,dog,True,100,A", "row 3: .* no earlier row has"),
    ],
)
def test_wrong_rows_of_esc(tmp_path: Path, old: str, new: str, error: str) -> None:
    root = esc(tmp_path)
    text = (root / "meta/esc50.csv").read_text()
    assert old in text
    (root / "meta/esc50.csv").write_text(text.replace(old, new, 1))
    assert re.search(error, found := message("esc50", root)), found


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (
            "100-0-0-0.wav,100,",
            "100-0-0-0.wav,200,",
            "slice_file_name, row 2: .* should be fsID-classID-occurrence-slice",
        ),
        ("1,1,0,air_conditioner", "1,one,0,air_conditioner", "fold, row 2: 'one': should be the number of a fold"),
        ("1,1,0,air_conditioner", "1,1,0,", "class, row 2: ''"),
    ],
)
def test_wrong_rows_of_urbansound8k(tmp_path: Path, old: str, new: str, error: str) -> None:
    root = urban(tmp_path)
    text = (root / "metadata/UrbanSound8K.csv").read_text()
    assert old in text
    (root / "metadata/UrbanSound8K.csv").write_text(text.replace(old, new, 1))
    assert re.search(error, found := message("urbansound8k", root)), found


def test_folds_and_folders_that_are_not_there(tmp_path: Path) -> None:
    root = esc(tmp_path / "esc")
    with pytest.raises(ValueError, match=r"data\.test_fold = '6' is not a fold of esc50: 1, 2, 3, 4, 5"):
        rows_of("esc50", root, test_fold="6")
    with pytest.raises(ValueError, match=r"data\.test_fold = '1' has no effect with data\.dataset = tau2019"):
        DataConfig(dataset="tau2019", test_fold="1")
    assert "holds no metadata/UrbanSound8K.csv: it should be the folder of the data set as it is" in message(
        "urbansound8k", root
    )
