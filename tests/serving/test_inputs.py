"""What --predict.inputs may name, with size and time of every file, in order."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from raymae.serving.inputs import INPUTS, find_files
from tests.support.audio_files import encoded, tar

SOUND = encoded()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("b.wav", "a.FLAC", "below/c.ogg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(SOUND)
    (tmp_path / "s.tar").write_bytes(tar({"m.wav": SOUND, "n.wav": SOUND}))
    (tmp_path / "t.csv").write_text("filename,scene_label\nbelow/c.ogg,bus\ngone.wav,\n")
    return tmp_path


def test_inputs_of_every_kind_keep_their_order(root: Path) -> None:
    (root / "elsewhere.wav").symlink_to(root / "b.wav")
    names = ("t.csv", "b.wav", "", "s.tar", "b.wav", "missing.wav")
    found = find_files(tuple(str(root / name) for name in names))
    assert found.schema == INPUTS
    loose = ["a.FLAC", "b.wav", "below/c.ogg", "elsewhere.wav"]
    members = [f"tar://{name}::{root}/s.tar" for name in ("m.wav", "n.wav")]
    expected = ["below/c.ogg", "gone.wav", "b.wav", *loose, *members, "b.wav", "missing.wav"]
    assert found["path"].to_pylist() == [name if "://" in name else str(root / name) for name in expected]
    size = [-1 if name in ("gone.wav", "missing.wav") else len(SOUND) for name in expected]
    assert found["size"].to_pylist() == size
    known = dict(zip(found["path"].to_pylist(), found["mtime"].to_pylist(), strict=True))
    assert known[str(root / "b.wav")] == (root / "b.wav").stat().st_mtime


def test_urls(root: Path) -> None:
    base = f"file://{root}"
    inputs = (f"{base}/b.wav", f"{base}/t.csv", f"{base}/below", f"{base}/missing.wav", f"tar://m.wav::{base}/s.tar")
    found = find_files(inputs)
    assert [size >= 0 for size in found["size"].to_pylist()] == [True, True, False, True, False, True]
    assert found["path"].to_pylist()[-1] == inputs[-1]

    with fsspec.open("memory://inputs/deep/a.wav", "wb") as file:
        file.write(SOUND)
    (path,) = find_files(("memory://inputs/deep",))["path"].to_pylist()
    with fsspec.open(path) as file:
        assert file.read() == SOUND


def test_a_changed_file_has_another_row(root: Path) -> None:
    before = find_files((str(root),))
    (root / "b.wav").write_bytes(SOUND + b"\0\0")
    assert not before.equals(find_files((str(root),)))


def test_no_file_to_label_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no file"):
        find_files(())
    with pytest.raises(ValueError, match="no audio file"):
        find_files((str(tmp_path),))
