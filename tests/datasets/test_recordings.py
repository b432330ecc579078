"""Recordings to clips: every second in one of them, named parts, lengths that are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from raymae.audio.windows import least_samples
from raymae.config import Config, DataConfig
from raymae.datasets import recordings
from raymae.datasets.clips import load
from raymae.datasets.recordings import LENGTHS, cut, lengths, load_clips, measure
from raymae.storage.folder import open_storage
from tests.support.audio_files import TINY_AUDIO, encoded, tar

CLIP = TINY_AUDIO.clip_seconds
LEAST = least_samples(TINY_AUDIO) / TINY_AUDIO.sample_rate


def rows_of(count: int, **columns: Any) -> pa.Table:
    names = pa.array([f"{number}.wav" for number in range(count)])
    group = pa.array([None if number % 2 else f"g{number}" for number in range(count)], pa.string())
    return pa.table({"clip_id": names, "path": names, "group": group, "split": ["train"] * count, **columns})


@given(st.lists(st.floats(0, 10) | st.just(float("nan")), min_size=1, max_size=6))
def test_every_second_is_in_one_clip(seconds: list[float]) -> None:
    clips = cut(rows_of(len(seconds)), np.array(seconds), TINY_AUDIO).to_pylist()
    assert len({clip["clip_id"] for clip in clips}) == len(clips)
    for number, length in enumerate(seconds):
        own = [clip for clip in clips if clip["recording"] == f"{number}.wav"]
        assert {clip["path"] for clip in own} == {f"{number}.wav"}
        if len(own) == 1:
            assert not length >= CLIP + LEAST
            assert (own[0]["clip_id"], own[0]["start_seconds"], own[0]["end_seconds"]) == (f"{number}.wav", None, None)
            assert own[0]["group"] == (None if number % 2 else f"g{number}")
            continue
        ends = [0.0, *(clip["end_seconds"] for clip in own)]
        assert [clip["start_seconds"] for clip in own] == pytest.approx(ends[:-1])
        assert ends[-1] <= length < ends[-1] + LEAST + 1e-3
        assert all(clip["end_seconds"] - clip["start_seconds"] <= CLIP + LEAST for clip in own)
        assert {clip["group"] for clip in own} == {f"{number}.wav" if number % 2 else f"g{number}"}


def test_named_parts_are_cut_where_they_are() -> None:
    table = rows_of(3, start_seconds=[1.0, None, 2.0], end_seconds=[1.5, None, None])
    clips = cut(table, np.array([9.0, 0.3, 3.5]), TINY_AUDIO).to_pylist()
    spans = [(clip["recording"], clip["start_seconds"], clip["end_seconds"]) for clip in clips]
    assert spans == [
        ("0.wav", 1.0, 1.5),
        ("1.wav", None, None),
        ("2.wav", 2.0, pytest.approx(2.64)),
        ("2.wav", pytest.approx(2.64), pytest.approx(3.28)),
        ("2.wav", pytest.approx(3.28), 3.5),
    ]


def test_lengths_are_those_of_the_files_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audio").mkdir()
    for name, seconds in (("a.wav", 2.0), ("b.flac", 3.5), ("c.ogg", 0.5), ("d.mp3", 4.0)):
        soundfile.write(tmp_path / "audio" / name, np.zeros(round(seconds * 8000)), 8000)
    (tmp_path / "audio" / "e.wav").write_bytes(b"no audio")
    (tmp_path / "t.tar").write_bytes(tar({"f.wav": encoded(n_samples=12_000)}))
    names = [str(path) for path in sorted((tmp_path / "audio").iterdir())] + [f"tar://f.wav::{tmp_path}/t.tar"]
    table = pa.table({"path": [*names, names[0]], "size": [1] * 7, "mtime": [0.0] * 7, "content": ["x"] * 7})
    storage = open_storage(str(tmp_path / "storage"))
    monkeypatch.setattr(recordings, "KEPT_SECONDS", -1)
    found = lengths(table, storage)
    np.testing.assert_allclose(found, [2.0, 3.5, 0.5, 4.0, np.nan, 1.5, 2.0], atol=0.1)
    monkeypatch.setattr(recordings, "measure", None)
    np.testing.assert_array_equal(lengths(table, storage), found)
    monkeypatch.undo()
    storage.write_bytes(LENGTHS, b"damaged")
    np.testing.assert_array_equal(lengths(table, storage), found)


def test_another_state_of_a_file_is_another_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    storage = open_storage(str(tmp_path / "storage"))
    for seconds in (1.0, 2.0):
        soundfile.write(path, np.zeros(round(seconds * 8000)), 8000)
        table = pa.table({"path": [str(path)], "size": [path.stat().st_size], "mtime": [0.0], "content": ["x"]})
        assert lengths(table, storage).tolist() == [seconds]


def test_a_missing_file_has_no_length(tmp_path: Path) -> None:
    assert np.isnan(measure(str(tmp_path / "none.wav")))


# Parts that a table names --------------------------------------------------------------------------------------------


def write_table(folder: Path, *rows: str) -> Path:
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, np.zeros(4 * 8000), 8000)
    table = folder / "metadata.csv"
    table.write_text("filename,scene_label,start_seconds,end_seconds,group\n" + "\n".join(rows) + "\n")
    return table


def test_rows_name_parts_of_a_file(tmp_path: Path) -> None:
    table = write_table(tmp_path, "a.wav,bus,0,1.5,", "a.wav,park, 1.5 ,3,", "b.wav,park,,,", "b.wav,bus,2,,ride")
    config = Config(data=DataConfig(dataset="table", tables=(str(table),)), audio=TINY_AUDIO)
    clips = load_clips(config, open_storage(str(tmp_path / "storage"))).to_pylist()
    by_part: dict[str, list[Any]] = {}
    for clip in clips:
        by_part.setdefault(clip["recording"], []).append(clip)
    assert {name: len(part) for name, part in by_part.items()} == {"a.wav@0-1.5": 3, "a.wav@1.5-3": 3} | {
        "b.wav": 7,
        "b.wav@2-": 4,
    }
    assert {clip["scene_label"] for clip in by_part["a.wav@1.5-3"]} == {"park"}
    ends = [(part[0]["start_seconds"], part[-1]["end_seconds"]) for part in by_part.values()]
    assert ends == [(0, 1.5), (1.5, 3), (0, 4), (2, 4)]
    assert {clip["group"] for clip in clips} == {"a.wav", "b.wav", "ride"}
    assert len({clip["clip_id"] for clip in clips}) == len(clips)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "a.wav,bus,0,1.5,",
            r"column filename, row 3: 'a.wav': should be a name that no earlier row has with",
        ),
        ("a.wav,bus,soon,2,", r"column start_seconds, row 3: 'soon': should be a number of seconds, 0 or more"),
        ("a.wav,bus,-1,2,", r"column start_seconds, row 3: '-1'"),
        ("a.wav,bus,2,1.5,", r"column end_seconds, row 3: '1.5': should be more than start_seconds"),
        ("a.wav,bus,nan,2,", r"column start_seconds, row 3: 'nan'"),
    ],
)
def test_a_part_that_is_none_is_named(tmp_path: Path, row: str, message: str) -> None:
    table = write_table(tmp_path, "a.wav,bus,0,1.5,", row)
    with pytest.raises(ValueError, match=message):
        load(DataConfig(dataset="table", tables=(str(table),)), None)
