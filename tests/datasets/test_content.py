"""Recordings of equal names, sizes and time stamps are told apart by their content, and copies found again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.config import DataConfig
from raymae.datasets.clips import load
from raymae.datasets.content import BLOCK, content_of, with_content
from raymae.features.write import plan_shards
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, tar, write_clips, write_table, write_tone
from tests.support.training import TINY


def corpus(folder: Path, factor: float) -> Path:
    """The metadata table of 40 tones of a frequency, all of one size and one time stamp."""
    table = write_table(folder, write_clips(folder, 40))
    for number, path in enumerate(sorted(folder.glob("*.wav"))):
        write_tone(path, factor * (200 + 10 * number), seed=number)
        os.utime(path, (1e9, 1e9))
    return table


def names(clips: pa.Table) -> list[str]:
    return [plan.name for plan in plan_shards(clips, TINY_AUDIO, 0.1)]


def test_two_corpora_of_equal_names_sizes_and_times_share_nothing(tmp_path: Path) -> None:
    tables = [corpus(tmp_path / name, factor) for name, factor in (("one", 1.0), ("other", 2.0))]
    configs = [replace(TINY, data=DataConfig(dataset="table", tables=(str(table),), shard_mb=0.1)) for table in tables]
    one, other = (load(config.data, None) for config in configs)
    assert one.select(["clip_id", "size", "mtime"]).equals(other.select(["clip_id", "size", "mtime"]))
    assert not set(names(one)) & set(names(other))
    plans = [
        Plan(config, clips, Folder(str(tmp_path / "storage")), "finetune")
        for config, clips in zip(configs, (one, other), strict=True)
    ]
    assert not {node.key for node in plans[0].nodes.values()} & {node.key for node in plans[1].nodes.values()}


def test_a_copy_with_its_times_is_found_again(tmp_path: Path) -> None:
    table = corpus(tmp_path / "one", 1.0)
    shutil.copytree(tmp_path / "one", tmp_path / "copy", copy_function=shutil.copy2)
    found = [
        load(DataConfig(dataset="table", tables=(str(path),)), None) for path in (table, tmp_path / "copy/metadata.csv")
    ]
    assert names(found[0]) == names(found[1])


def test_a_shard_of_other_members_is_another_one(tmp_path: Path) -> None:
    paths = [tmp_path / name / "clips.tar" for name in ("one", "other")]
    for path, content in zip(paths, (b"a", b"b"), strict=True):
        path.parent.mkdir()
        path.write_bytes(tar({"x.wav": content * 1000}))
        os.utime(path, (1e9, 1e9))
    rows = pa.table({"path": [f"tar://x.wav::{path}" for path in paths]})
    found = with_content(rows)["content"].to_pylist()
    assert found[0] != found[1]
    assert found == [content_of(str(path)) for path in paths]


@given(data=st.data())
def test_a_changed_byte_of_a_short_file_changes_its_content(data: st.DataObject, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.getbasetemp() / "short"
    content = bytearray(data.draw(st.binary(min_size=1, max_size=3 * BLOCK)))
    path.write_bytes(content)
    before = content_of(str(path))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert content_of(str(path)) != before


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_long_files_are_compared_at_three_places(tmp_path: Path, place: str) -> None:
    size = 100 * BLOCK
    content = bytearray(size)
    (tmp_path / "a").write_bytes(content)
    content[{"start": 0, "middle": size // 2, "end": size - 1}[place]] = 1
    (tmp_path / "b").write_bytes(content)
    assert content_of(str(tmp_path / "a")) != content_of(str(tmp_path / "b"))


def test_what_is_no_file_has_no_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert [content_of(str(path)) for path in (tmp_path, tmp_path / "gone", tmp_path / "pipe")] == [None] * 3
    assert with_content(pa.table({"path": ["s3://bucket/a.wav"]}))["content"].to_pylist() == [None]
