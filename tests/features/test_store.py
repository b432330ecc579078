"""The feature store: exact rows in any order, bad files quarantined, shards reused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.audio.logmel import LogMel
from raymae.features.shard import read_summary
from raymae.features.store import FeatureStore
from raymae.features.write import plan_shards, shard_rows, write_shard
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_clips, write_tone


def test_reads_what_the_front_end_computes(store: FeatureStore, clips: pa.Table) -> None:
    rows = np.array([3, 117, 0, 64, 3])
    log_mel, valid_frames = store.read(rows)
    assert log_mel.shape == (5, TINY_AUDIO.n_frames, TINY_AUDIO.n_mels)
    for row, found, frames in zip(rows, log_mel, valid_frames, strict=True):
        expected = LogMel(TINY_AUDIO)(load(clips["path"][int(row)].as_py(), TINY_AUDIO.sample_rate))
        np.testing.assert_array_equal(found[:frames], expected[:frames].astype(np.float16))
        assert frames == TINY_AUDIO.n_frames


@settings(max_examples=25)
@given(rows=st.lists(st.integers(0, 119), min_size=1, max_size=60))
def test_any_rows_in_any_order(store: FeatureStore, rows: list[int]) -> None:
    everything, _ = store.read(np.arange(120))
    found, _ = store.read(np.array(rows))
    np.testing.assert_array_equal(found, everything[rows])


def test_the_store_is_picklable(store: FeatureStore) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(store))
    assert len(again) == 120
    np.testing.assert_array_equal(again.read(np.array([5]))[0], store.read(np.array([5]))[0])


def test_bad_files_are_quarantined_with_a_reason(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 6)
    paths = clips["path"].to_pylist()
    Path(paths[1]).write_bytes(b"")
    Path(paths[3]).write_bytes(b"this is no audio at all" * 50)
    Path(paths[4]).unlink()
    shards = Folder(str(tmp_path / "shards"))
    summary = write_shard(shards, "one.parquet", clips, ClipReader(TINY_AUDIO, 10))
    assert summary["rows"] == 3
    assert [entry["path"] for entry in summary["quarantine"]] == [paths[1], paths[3], paths[4]]
    assert all(entry["reason"] for entry in summary["quarantine"])
    assert read_summary(shards, "one.parquet") == summary


def test_a_shard_without_any_good_file_is_a_shard(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 2)
    for path in clips["path"].to_pylist():
        Path(path).unlink()
    shards = Folder(str(tmp_path / "shards"))
    assert write_shard(shards, "none.parquet", clips, ClipReader(TINY_AUDIO, 10))["rows"] == 0


def test_a_damaged_shard_has_no_summary(tmp_path: Path) -> None:
    shards = Folder(str(tmp_path))
    assert read_summary(shards, "a.parquet") is None
    shards.write_bytes("a.parquet", b"PAR1 and then nothing")
    assert read_summary(shards, "a.parquet") is None


def test_a_stuck_file_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    write_tone(tmp_path / "good.wav", 440)
    release = threading.Event()
    reader = ClipReader(TINY_AUDIO, 0.2)
    real = reader._read

    def read(path: str, spans: Any) -> Any:
        return [release.wait(20)] if path == "stuck" else real(path, spans)

    monkeypatch.setattr(reader, "_read", read)
    with pytest.raises(AudioError, match=r"0\.2 s"):
        reader("stuck")
    assert reader(str(tmp_path / "good.wav"))[1] == TINY_AUDIO.n_frames
    release.set()


def test_names_follow_the_clips_and_not_their_layout(clips: pa.Table) -> None:
    whole = plan_shards(clips, TINY_AUDIO, 0.1)
    pieces = pa.concat_tables([clips.slice(0, 7), clips.slice(7, 50), clips.slice(57)])
    large = pieces.set_column(0, "clip_id", pieces["clip_id"].cast(pa.large_string()))
    assert whole == plan_shards(pieces, TINY_AUDIO, 0.1) == plan_shards(large, TINY_AUDIO, 0.1)
    for column, value in (("clip_id", "another"), ("size", 1), ("mtime", 1.0)):
        values = clips[column].to_pylist()
        changed = clips.set_column(
            clips.column_names.index(column), column, pa.array([*values[:-1], value], clips[column].type)
        )
        found = plan_shards(changed, TINY_AUDIO, 0.1)
        assert found[:-1] == whole[:-1]
        assert found[-1] != whole[-1]


def test_more_clips_leave_the_first_shards_as_they_are(clips: pa.Table) -> None:
    before = plan_shards(clips.slice(0, 100), TINY_AUDIO, 0.1)
    after = plan_shards(clips, TINY_AUDIO, 0.1)
    assert [plan.name for plan in before[:-1]] == [plan.name for plan in after[: len(before) - 1]]


def test_shards_follow_the_content_and_the_front_end(clips: pa.Table) -> None:
    from dataclasses import replace

    names = {plan.name for plan in plan_shards(clips, TINY_AUDIO, 0.1)}
    other_audio = {plan.name for plan in plan_shards(clips, replace(TINY_AUDIO, f_min=50), 0.1)}
    touched = clips.set_column(clips.column_names.index("mtime"), "mtime", pa.array([1.0] * len(clips)))
    assert not names & other_audio
    assert not names & {plan.name for plan in plan_shards(touched, TINY_AUDIO, 0.1)}


def test_without_change_times_the_path_identifies_files(clips: pa.Table) -> None:
    timeless = clips.set_column(clips.column_names.index("mtime"), "mtime", pa.array([0.0] * len(clips)))
    paths = pa.array([f"/elsewhere/{path}" for path in clips["path"].to_pylist()])
    moved = timeless.set_column(clips.column_names.index("path"), "path", paths)
    here, there = ({plan.name for plan in plan_shards(table, TINY_AUDIO, 0.1)} for table in (timeless, moved))
    assert not here & there


@given(clips=st.integers(1, 10**7), megabytes=st.floats(0.1, 500))
def test_shards_stay_within_their_size(clips: int, megabytes: float) -> None:
    rows = shard_rows(clips, TINY_AUDIO, megabytes)
    assert rows >= 16
    assert rows == 16 or rows * 2 * TINY_AUDIO.n_frames * TINY_AUDIO.n_mels <= megabytes * 1e6
