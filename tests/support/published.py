"""Folders of published data sets, made from their tables."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from raymae.config import DataConfig
from raymae.datasets.clips import gather
from tests.support.paths import SHARED

METADATA = SHARED / "data/metadata"

published = pytest.mark.skipif(not METADATA.is_dir(), reason=f"no published metadata at {METADATA}")

DEV, DEV_TIMED = "ICME2024_ASC_dev_label.csv", "APSIPA2025_GC_ASC_dev_metadata.csv"

EVAL, EVAL_TIMED = "ICME2024_ASC_eval.csv", "APSIPA2025_GC_ASC_eval_metadata.csv"


def rows_of(dataset: str, root: Path, **settings: object) -> pa.Table:
    """The rows of a folder, with or without the recordings."""
    return gather(DataConfig(dataset=dataset, root=str(root), **settings), None)[0]  # type: ignore[arg-type]


def message(dataset: str, root: Path) -> str:
    """The message of the ValueError that loading a folder raises, in one line."""
    with pytest.raises(ValueError, match=r".") as caught:
        rows_of(dataset, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def recordings(folder: Path, names: Iterable[str]) -> None:
    """Link a small file under many names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "sound").write_bytes(b"sound")
    for name in names:
        os.link(folder.parent / "sound", folder / name)


def write(path: Path, rows: list[str], bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "\n".join([*rows, ""]).encode())
    return path


TIMED = "filename,location,record_time,scene_label"
