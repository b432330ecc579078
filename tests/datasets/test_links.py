"""Symbolic links in folders and tables: followed within what the user named, or all of them, and never in a circle."""

import logging
from pathlib import Path

import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import load
from raymae.datasets.tables.links import Links
from raymae.datasets.tables.settings import TableSettings
from raymae.datasets.tables.table import read_table
from raymae.serving.inputs import find_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder `set` with links to a file and a folder beside it, into itself, and back from there."""
    for name in ("set/a.wav", "set/deep/b.wav", "beside/c.wav", "beside/more/d.wav", "e.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/out").symlink_to(tmp_path / "beside")
    (tmp_path / "set/again").symlink_to(tmp_path / "beside/more")
    (tmp_path / "set/zzz").symlink_to(tmp_path / "beside/more")
    (tmp_path / "beside/back").symlink_to(tmp_path / "set")
    (tmp_path / "beside/up").symlink_to(tmp_path)
    return tmp_path


def names(root: Path, links: Links) -> list[str]:
    return sorted(
        Path(path).name
        for path in read_table(f"{root}/set", pool=True, settings=TableSettings(links=links))["path"].to_pylist()
    )


def test_links_to_folders(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert names(root, Links()) == ["a.wav", "b.wav"]
    assert "3 links to folders out of it (--data.follow-links follows them)" in caplog.text
    assert "1 links to folders within it" in caplog.text
    every = ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert names(root, Links(follow_all=True)) == every
    assert names(root, Links(roots=(str(root / "beside"),))) == every
    assert names(root, Links(roots=(str(root / "beside/more"),))) == ["a.wav", "b.wav", "d.wav"]


def test_links_to_files(root: Path) -> None:
    (root / "set/f.wav").symlink_to(root / "e.wav")
    (root / "set/g.wav").symlink_to(root / "set/a.wav")
    with pytest.raises(ValueError, match=r"'f.wav': should stay in .* link leads out of it; --data.follow-links"):
        names(root, Links())
    assert names(root, Links(roots=(str(root),))) == ["a.wav", "b.wav", "c.wav", "d.wav", "f.wav", "g.wav"]


def test_links_that_a_table_names(root: Path) -> None:
    (root / "set/f.wav").symlink_to(root / "e.wav")
    for name in ("f.wav", "out/c.wav"):
        (root / "set/t.csv").write_text(f"filename,scene_label\na.wav,bus\n{name},bus\n")
        with pytest.raises(ValueError, match=rf"row 3: '{name}': should stay in .* link .*--data.follow-links"):
            read_table(f"{root}/set/t.csv")
        config = DataConfig(dataset="table", tables=(f"{root}/set/t.csv",), follow_links=True)
        assert load(config, None)["size"].to_pylist() == [1, 1]
    (root / "set/t.csv").write_text("filename\n../e.wav\n")
    with pytest.raises(ValueError, match=r"'../e.wav': should stay in [^,]*, the table's own folder$"):
        read_table(f"{root}/set/t.csv", settings=TableSettings(links=Links(follow_all=True)))


def test_the_roots_are_what_the_settings_name(root: Path) -> None:
    config = DataConfig(
        dataset="table", tables=(f"{root}/set/t.csv", "s3://bucket/t.csv"), pool_tables=(f"{root}/set",)
    )
    assert Links.of(config, f"{root}/beside/c.wav").roots == (f"{root}/beside", f"{root}/set")


def test_links_to_predict(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find_files((f"{root}/set",))["path"].to_pylist()
    assert sorted(Path(path).name for path in found) == ["a.wav", "b.wav"]
    assert "3 links to folders out of it (--data.follow-links follows them)" in caplog.text
    found = find_files((f"{root}/set",), TableSettings(links=Links(follow_all=True)))["path"].to_pylist()
    assert sorted(Path(path).name for path in found) == ["a.wav", "b.wav", "c.wav", "d.wav"]


def test_what_a_folder_holds_and_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"below it: the folder is empty$"):
        read_table(str(tmp_path), pool=True)
    with pytest.raises(ValueError, match=r"the folder is empty$"):
        find_files((str(tmp_path),))
    for name in ("a.txt", "b.txt", "c.pdf", "README"):
        (tmp_path / name).write_bytes(b"x")
    for read in (lambda: read_table(str(tmp_path), pool=True), lambda: find_files((str(tmp_path),))):
        with pytest.raises(ValueError, match=r"it holds 2 files \*\.txt, 1 files (\*\.pdf|without an ending), 1 files"):
            read()
    (tmp_path / "a.M4A").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert len(find_files((str(tmp_path),))) == len(read_table(str(tmp_path), pool=True)) == 1
    assert caplog.text.count("left out: 2 files *.txt") == 2
