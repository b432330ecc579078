"""A folder per class: classes, groups, splits, what is left out, and folders of splits that nearly are."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import load
from tests.support.audio_files import write_tone
from tests.support.published import message, recordings


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"sound")
    return root


def rows(root: Path) -> dict[str, tuple[str, str | None, str | None]]:
    clips = load(DataConfig(dataset="folders", root=str(root)), None)
    columns = (clips[name].to_pylist() for name in ("clip_id", "split", "scene_label", "group"))
    return {name: found for name, *found in zip(*columns, strict=True)}  # type: ignore[misc]


def test_a_folder_is_a_class_and_one_below_it_a_group(tmp_path: Path) -> None:
    root = put(tmp_path, "bus/1.wav", "bus/ride 3/1.wav", "bus/ride 3/b/2.FLAC", "train/1.mp3")
    assert rows(root) == {
        "bus/1.wav": ["train", "bus", None],
        "bus/ride 3/1.wav": ["train", "bus", "bus/ride 3"],
        "bus/ride 3/b/2.FLAC": ["train", "bus", "bus/ride 3/b"],
        "train/1.mp3": ["train", "train", None],
    }


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "test_lyon"), ("train",)])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = put(tmp_path, *(f"{name}/bus/1.wav" for name in names), *(f"{name}/park/x/1.wav" for name in names))
    expected = {f"{name}/bus/1.wav": [name, "bus", None] for name in names}
    expected |= {f"{name}/park/x/1.wav": [name, "park", f"{name}/park/x"] for name in names}
    assert rows(root) == expected


def test_a_pool_needs_no_classes(tmp_path: Path) -> None:
    root = put(tmp_path, "train/bus/1.wav", "test/bus/2.wav", "pool/3.wav", "pool/any/4.wav")
    found = rows(root)
    assert found["pool/3.wav"][:2] == found["pool/any/4.wav"][:2] == ["pool", None]


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(rows(put(tmp_path, "bus/1.wav", "bus/notes.txt", "bus/.hidden.wav", "stray.wav"))) == 1
    assert "1 hidden files" in caplog.text
    assert "1 files *.txt" in caplog.text
    assert "1 recordings are in no table and not used: stray.wav" in caplog.text


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("train/bus/1.wav", "valid/bus/1.wav"), "not valid; valid should be val"),
        (("Train/bus/1.wav", "Test/bus/1.wav"), "not Test, Train; Test should be test; Train should be train"),
        (("train/bus/1.wav", "test/bus/1.wav", "extra/bus/1.wav"), "begin with test; not extra"),
        (("1.wav", "bus/notes.txt"), "expected CLASS/recording.wav, or train/CLASS/recording.wav"),
        (("a;b/1.wav",), "the folder 'a;b' should have a name without ';'"),
    ],
)
def test_folders_that_mean_something_else(tmp_path: Path, names: tuple[str, ...], error: str) -> None:
    assert error in message("folders", put(tmp_path, *names))


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    recordings(tmp_path / "elsewhere", ["1.wav"])
    root = put(tmp_path / "root", "bus/1.wav")
    (root / "bus/2.wav").symlink_to(tmp_path / "elsewhere/1.wav")
    assert "should stay in" in message("folders", root)


def test_classifiers_can_be_trained_on_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for scene in ("bus", "park"):
            write_tone(tmp_path / split / scene / "1.wav", 440)
    clips = load(DataConfig(dataset="folders", root=str(tmp_path)), None, "single")
    assert clips["content"].null_count == 0
