"""Results in parts: folders that hold other results or files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymae.cluster.parts import claim, part_name
from raymae.storage.folder import Folder


def test_a_folder_is_for_the_same_settings_only(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new"))
    for _ in range(2):
        claim(folder, {"a": 1}, "--x.output", "labels")
    with pytest.raises(ValueError, match=r"--x.output .*new holds labels of other settings or clips"):
        claim(folder, {"a": 2}, "--x.output", "labels")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        claim(Folder(str(tmp_path)), {}, "--x.output", "labels")


def test_names_sort_like_the_rows() -> None:
    names = [part_name(start) for start in (0, 2048, 10_240, 1_000_000_000 - 1)]
    assert names == sorted(names)
