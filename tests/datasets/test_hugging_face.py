"""Hugging Face's audio tables: the same rows from the hub and from a folder; splits, labels, and what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymae.audio.clip_reader import ClipReader
from raymae.audio.sources import open_clip
from raymae.config import DataConfig
from raymae.datasets.clips import load
from raymae.datasets.tables.hugging_face import configuration_of, read_hub_table, split_of
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, encoded
from tests.support.hub import UnreachableHub, audio, class_label, hub, hub_table, use  # noqa: F401

SOUNDS = [encoded(seed) for seed in range(6)]
SCENES = class_label("bus", "park", "tram")
FILES = {
    "data/train-00000-of-00002.parquet": hub_table(
        {"audio": audio(*SOUNDS[:2]), "label": [2, 0]}, {"label": SCENES, "audio": {"_type": "Audio"}}
    ),
    "data/train-00001-of-00002.parquet": hub_table({"audio": audio(SOUNDS[2]), "label": [-1]}, {"label": SCENES}),
    "data/validation-00000-of-00001.parquet": hub_table({"audio": audio(SOUNDS[3]), "label": [0]}, {"label": SCENES}),
    "data/test-00000-of-00001.parquet": hub_table({"audio": audio(*SOUNDS[4:]), "label": [2, 0]}, {"label": SCENES}),
    "README.md": b"# A data set",
}
URL = "hf://datasets/someone/scenes"


@pytest.fixture(params=["hub", "revision", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a data set that isn't written yet."""
    if request.param == "folder":
        return str(tmp_path / "scenes")
    request.getfixturevalue("hub")
    return URL + ("@refs%2Fconvert%2Fparquet" if request.param == "revision" else "")


def put(place: str, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        Folder(place).write_bytes(name, content)
    return place


def message(place: str, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load(DataConfig(dataset="table", tables=(place,), **settings), None)
    return str(caught.value)


def one(values: Any, feature: Any = None, column: str = "label") -> dict[str, bytes]:
    """A data set of one file, with one column of labels."""
    sounds = audio(*(SOUNDS[0] for _ in range(len(values))))
    return {
        "data/train-0.parquet": hub_table({"audio": sounds, column: values}, {column: feature} if feature else None)
    }


def test_a_data_set_as_the_hub_lays_it_out(place: str, caplog: pytest.LogCaptureFixture) -> None:
    clips = load(DataConfig(dataset="table", tables=(put(place, FILES),)), None, "single")
    expected = [("test", "tram"), ("test", "bus"), ("train", "tram"), ("train", "bus"), ("train", None), ("val", "bus")]
    assert list(zip(clips["split"].to_pylist(), clips["scene_label"].to_pylist(), strict=True)) == expected
    found = [open_clip(path) for path in clips["path"].to_pylist()]
    assert found == [*SOUNDS[4:], *SOUNDS[:4]]
    assert len(clips["clip_id"].unique()) == 6
    assert "1 files *.md" in caplog.text
    np.testing.assert_array_equal(ClipReader(TINY_AUDIO, 10)(clips["path"][2].as_py())[0].shape[1], TINY_AUDIO.n_mels)


def test_a_data_set_is_a_pool_too(place: str) -> None:
    own = DataConfig(dataset="table", tables=(put(place, FILES),), pool_tables=(place,), max_bad_share=0.9)
    with pytest.raises(ValueError, match="every recording should occur once"):
        load(own, None)


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (["bus", "", None], None, ["bus", None, None]),
        ([1, 0, None], class_label("a", "b"), ["b", "a", None]),
        ([7, 0], None, ["7", "0"]),
        ([[0, 2], [], [1]], {"feature": class_label("a", "b", "c"), "_type": "Sequence"}, ["a;c", None, "b"]),
        ([[0], [1, 0]], [class_label("a", "b")], ["a", "b;a"]),
        ([["x", "y"], None], None, ["x;y", None]),
        (pa.array([["x"], []], pa.large_list(pa.large_string())), None, ["x", None]),
        (pa.chunked_array([[[1]], [[0, 1]]]), {"feature": class_label("a", "b"), "_type": "List"}, ["b", "a;b"]),
    ],
)
def test_every_form_of_labels(tmp_path: Path, values: Any, feature: Any, expected: list[str | None]) -> None:
    rows = read_hub_table(put(str(tmp_path), one(values, feature)), "label")
    assert rows["scene_label"].to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "feature", "error"),
    [
        ([0, 5], class_label("a", "b"), r"column label, row 2: '5': should be less than 2, the number of classes"),
        ([[0], [1, 9]], [class_label("a", "b")], "row 2: '9': should be less than 2"),
        ([["a", "b;c"]], None, r"row 1: 'b;c': should be a class without ';'"),
        ([["a", None]], None, "row 1: ''"),
        ([0], class_label("a;b"), r"the class 'a;b' should have a name without ';'"),
        ([0.5], None, "labels should be text, numbers of classes, or lists of them; not double"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, values: Any, feature: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error) as caught:
        read_hub_table(put(str(tmp_path), one(values, feature)), "label")
    assert "data/train-0.parquet" in str(caught.value)


def test_the_column_of_labels_is_found_or_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    two = {"fine": class_label("a"), "coarse": class_label("b")}
    place = put(
        str(tmp_path / "two"), {"train.parquet": hub_table({"audio": audio(b"x"), "fine": [0], "coarse": [0]}, two)}
    )
    assert "several columns of classes, coarse, fine: choose by --data.label-column" in message(place)
    assert read_hub_table(place, "coarse")["scene_label"].to_pylist() == ["b"]
    assert "train.parquet has no column label; its columns are 'audio', 'fine', 'coarse'" in message(
        place, label_column="label"
    )
    text = put(str(tmp_path / "text"), one(["dog,bark"], column="category"))
    assert read_hub_table(text)["scene_label"].to_pylist() == [None]
    assert "has no column of classes, its clips are unlabelled; --data.label-column names one" in caplog.text
    assert read_hub_table(text, "category", ",")["scene_label"].to_pylist() == ["dog;bark"]


def test_names_of_clips_are_unique(tmp_path: Path) -> None:
    same = {
        f"{split}.parquet": hub_table({"audio": audio(b"x"), "filename": [f"{split}.wav"]})
        for split in ("train", "test")
    }
    assert read_hub_table(put(str(tmp_path / "a"), same))["clip_id"].to_pylist() == ["test.wav", "train.wav"]
    for split in ("train", "test"):
        same[f"{split}.parquet"] = hub_table({"audio": audio(b"x"), "filename": ["0.wav"]})
    rows = read_hub_table(put(str(tmp_path / "b"), same))
    assert rows["clip_id"].to_pylist() == ["parquet://audio/1::test.parquet", "parquet://audio/1::train.parquet"]


@pytest.mark.parametrize(
    ("file", "split", "configuration"),
    [
        ("data/train-00000-of-00004.parquet", "train", "data"),
        ("data/validation-00000-of-00001.parquet", "val", "data"),
        ("clean/train.100-00000-of-00014.parquet", "train", "clean"),
        ("default/test/0000.parquet", "test", "default"),
        ("data/valid.parquet", "val", "data"),
        ("data/fold1-00000-of-00005.parquet", None, "data"),
        ("trainsets/trains.parquet", None, "trainsets"),
    ],
)
def test_splits_and_configurations(file: str, split: str | None, configuration: str) -> None:
    assert (split_of(file), configuration_of(file)) == (split, configuration)


def test_several_configurations_are_refused(tmp_path: Path) -> None:
    files = {f"{name}/train-0.parquet": hub_table({"audio": audio(b"x")}) for name in ("clean", "noisy")}
    place = put(str(tmp_path), files)
    assert f"holds several configurations, name one of them: {place}/clean, {place}/noisy" in message(place)
    assert len(read_hub_table(f"{place}/noisy")) == 1


def test_files_without_audio_and_damaged_ones_are_named(tmp_path: Path) -> None:
    place = put(str(tmp_path / "a"), {"train.parquet": hub_table({"text": ["x"]})})
    assert "train.parquet has no column audio of encoded files" in message(place)
    place = put(str(tmp_path / "b"), {"train.parquet": FILES["data/test-00000-of-00001.parquet"][:-50]})
    assert "train.parquet can't be read as a Parquet table" in message(place)


def test_one_file_of_the_hub(tmp_path: Path) -> None:
    place = put(str(tmp_path), FILES) + "/data/test-00000-of-00001.parquet"
    clips = load(DataConfig(dataset="table", tables=(place,)), None)
    assert clips["scene_label"].to_pylist() == ["tram", "bus"]
    assert clips["split"].to_pylist() == ["test", "test"]


def test_a_hub_that_cannot_be_read(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert f"{URL} can't be read: there is no such repository, revision or file, or it is private" in message(URL)
    use(UnreachableHub, monkeypatch)
    for settings in ({"tables": (URL,)}, {"tables": (URL,), "pool_tables": (URL,)}):
        with pytest.raises(ValueError, match=rf"{URL} can't be read: the hub can't be reached.*Name or service"):
            load(DataConfig(dataset="table", **settings), None)  # type: ignore[arg-type]
