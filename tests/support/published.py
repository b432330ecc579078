"""Folders of published data sets as their tables describe them."""

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

published = pytest.mark.skipif(not METADATA.is_dir(), reason="no published metadata (../shared/data/metadata) here")

DEV, DEV_TIMED = "ICME2024_ASC_dev_label.csv", "APSIPA2025_GC_ASC_dev_metadata.csv"

EVAL, EVAL_TIMED = "ICME2024_ASC_eval.csv", "APSIPA2025_GC_ASC_eval_metadata.csv"


def rows_of(dataset: str, root: Path, **settings: float) -> pa.Table:
    """The rows of a folder, present or not."""
    return gather(DataConfig(dataset=dataset, root=str(root), **settings), None)[0]  # type: ignore[arg-type]


def message(dataset: str, root: Path) -> str:
    """The one-line error of a folder."""
    with pytest.raises(ValueError, match=r".") as caught:
        rows_of(dataset, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def recordings(folder: Path, names: Iterable[str]) -> None:
    """One small file under many names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "sound").write_bytes(b"sound")
    for name in names:
        os.link(folder.parent / "sound", folder / name)


def write(path: Path, rows: list[str], bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "\n".join([*rows, ""]).encode())
    return path


TIMED = "filename,location,record_time,scene_label"
