"""File names in another Unicode form than the table's: found on disk, at a URL and in tars, exact names first."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from unicodedata import normalize

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio.sources import open_clip
from raymae.datasets.tables.table import read_table
from tests.support.audio_files import tar

FORMS = ("NFC", "NFD")
NAMES = st.text("aeé가ñA", min_size=1, max_size=4)


def read(url: str) -> list[dict[str, object]]:
    return list(read_table(url).to_pylist())


@settings(deadline=None, max_examples=40)
@given(
    names=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4, unique=True),
    stored=st.sampled_from(FORMS),
    named=st.sampled_from(FORMS),
    remote=st.booleans(),
)
def test_a_file_is_found_in_the_other_form(names: list[tuple[str, str]], stored: str, named: str, remote: bool) -> None:
    files = [f"{folder}/{name}.wav" for folder, name in names]
    lines = [normalize(named, file) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        root = f"memory://forms{folder}" if remote else folder
        fs = fsspec.filesystem("memory" if remote else "file")
        for number, file in enumerate(files):
            path = normalize(stored, f"{root}/{file}")
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe(path, b"x" * (number + 1))
        fs.pipe(f"{root}/t.csv", "\n".join(["filename", *lines]).encode())
        rows = read(f"{root}/t.csv")
        assert [row["clip_id"] for row in rows] == lines
        assert [row["size"] for row in rows] == [number + 1 for number in range(len(files))]
        assert [fs.size(row["path"]) for row in rows] == [row["size"] for row in rows]


@pytest.mark.parametrize(("named", "stored"), list(itertools.product(FORMS, repeat=2)))
def test_a_member_of_a_tar_is_found_and_read_in_the_other_form(tmp_path: Path, named: str, stored: str) -> None:
    shard = normalize(stored, "Café.tar")
    (tmp_path / shard).write_bytes(tar({normalize(stored, "é.wav"): b"one", "b.wav": b"two"}))
    names = [
        normalize(named, "tar://é.wav::Café.tar"),
        normalize(named, "tar://b.wav::Café.tar"),
        "tar://c.wav::Café.tar",
    ]
    (tmp_path / "t.csv").write_text("\n".join(["filename", *names]))
    rows = read(str(tmp_path / "t.csv"))
    assert [row["size"] for row in rows] == [3, 3, -1]
    for row, content in zip(rows, (b"one", b"two"), strict=False):
        source = open_clip(str(row["path"]))
        assert (source if isinstance(source, bytes) else source.read()) == content  # type: ignore[union-attr]


def test_exact_names_win(tmp_path: Path) -> None:
    for number, form in enumerate(FORMS):
        (tmp_path / normalize(form, "é.wav")).write_bytes(b"x" * (number + 1))
    (tmp_path / "t.csv").write_text("\n".join(["filename", *(normalize(form, "é.wav") for form in FORMS)]))
    assert [row["size"] for row in read(str(tmp_path / "t.csv"))] == [1, 2]


def test_a_folder_of_another_form_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.wav").write_bytes(b"secret")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / normalize("NFD", "é")).symlink_to(tmp_path / "out")
    (tmp_path / "set/t.csv").write_text(f"filename\n{normalize('NFC', 'é')}/a.wav\n")
    assert [row["size"] for row in read(str(tmp_path / "set/t.csv"))] == [-1]
