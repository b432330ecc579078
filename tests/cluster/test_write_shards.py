"""Real odd files through the feature store's reader and writer: each is kept or quarantined."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymae.audio.clip_reader import ClipReader
from raymae.audio.decode import load
from raymae.audio.errors import AudioError
from raymae.cluster.prepare import missing_shards
from raymae.config import AudioConfig
from raymae.features.manifest import Tally, quarantine_csv
from raymae.features.shard import DAMAGED, SILENT, read_summary
from raymae.features.store import features_of
from raymae.features.write import plan_shards, write_shard
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, clip_table, write_clips, write_tone
from tests.support.odd_audio import ODD, REFUSED_BY_RAYMAE, odd_files
from tests.support.training import TINY

AUDIO = {"short": replace(TINY_AUDIO, sample_rate=32_000, clip_seconds=0.1), "paper": AudioConfig()}


@pytest.fixture(scope="module")
def odd() -> pa.Table:
    """The odd files, as rows of a clip table."""
    if not ODD.exists():
        pytest.skip("the odd audio files are not here")
    names = [row["filename"] for row in odd_files()]
    return clip_table([ODD / name for name in names], names)


@pytest.fixture(scope="module", params=AUDIO)
def written(request: pytest.FixtureRequest, odd: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The odd files in shards, by two front ends: (audio, kept rows, quarantine)."""
    audio = AUDIO[request.param]
    shards = Folder(str(tmp_path_factory.mktemp("shards")))
    plans = plan_shards(odd, audio, 128)
    assert sum(plan.stop - plan.start for plan in plans) == len(odd)
    reader, kept, quarantine = ClipReader(audio, 30), [], []
    for plan in plans:
        summary = write_shard(shards, plan.name, odd.slice(plan.start, plan.stop - plan.start), reader)
        assert read_summary(shards, plan.name) == summary
        kept.append(pq.read_table(shards.path(plan.name)))
        assert len(kept[-1]) == summary["rows"]
        assert summary["seconds"] == pytest.approx(pc.sum(kept[-1]["seconds"]).as_py() or 0, rel=1e-5)
        quarantine += summary["quarantine"]
    return audio, pa.concat_tables(kept), quarantine


def test_every_odd_file_is_kept_or_quarantined(odd: pa.Table, written: Any) -> None:
    _, kept, quarantine = written
    found = [*kept["clip_id"].to_pylist(), *(entry["clip_id"] for entry in quarantine)]
    assert sorted(found) == sorted(odd["clip_id"].to_pylist())
    assert len(set(found)) == len(found) == 73


def test_every_odd_file_has_the_right_reason(written: Any) -> None:
    _, kept, quarantine = written
    good = {row["filename"] for row in odd_files() if row["soundfile"] == "ok"} - set(REFUSED_BY_RAYMAE)
    silent = {entry["clip_id"] for entry in quarantine if entry.get(SILENT)}
    assert {*kept["clip_id"].to_pylist(), *silent} == good
    assert all(np.ptp(load(ODD / name, 32_000)[:3200]) < 1e-3 for name in silent)
    reasons = {entry["clip_id"]: entry["reason"] for entry in quarantine if not entry.get(SILENT)}
    for name, reason in reasons.items():
        assert reason == REFUSED_BY_RAYMAE.get(name, reason)
        assert reason.startswith(("can't be decoded: ", "truncated: "))
        assert "\n" not in reason
        with pytest.raises(AudioError) as error:
            load(ODD / name, 32_000)
        assert str(error.value) == reason


def test_kept_odd_files_are_finite_and_complete(written: Any) -> None:
    audio, kept, _ = written
    log_mel = features_of(kept["log_mel"], audio)
    assert log_mel.shape == (len(kept), audio.n_frames, audio.n_mels)
    assert np.isfinite(log_mel).all()
    frames = kept["valid_frames"].to_numpy()
    assert frames.min() >= 1
    assert frames.max() <= audio.n_frames
    seconds = {row["filename"]: int(row["header_frames"]) / int(row["sr"]) for row in odd_files() if row["sr"]}
    for row in kept.select(["clip_id", "seconds", "valid_frames"]).to_pylist():
        expected = min(seconds[row["clip_id"]], audio.clip_seconds)
        assert row["seconds"] == pytest.approx(expected, abs=2 / audio.sample_rate), row["clip_id"]
        assert row["valid_frames"] == min(audio.n_frames, audio.frames(round(row["seconds"] * audio.sample_rate)))
    padding = np.arange(audio.n_frames) >= frames[:, None]
    assert (log_mel[padding] == np.float16(audio.silence)).all()


def test_broken_files_are_quarantined(tmp_path: Path) -> None:
    write_tone(tmp_path / "good.wav", 440)
    write_tone(tmp_path / "whole.wav", 440, seconds=2)
    whole = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("a,b\n1,2\n" * 100)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "good link.wav").symlink_to(tmp_path / "good.wav")
    (tmp_path / "dead link.wav").symlink_to(tmp_path / "nowhere")
    reasons = {
        "cut.wav": "truncated",
        "empty.wav": "empty file",
        "text.wav": "can't be decoded",
        "folder.wav": "not a regular file",
        "dead link.wav": "No such file",
        "gone.wav": "No such file",
    }
    names = ["good.wav", *reasons, "good link.wav"]
    clips = clip_table([tmp_path / name for name in names], names)
    summary = write_shard(Folder(str(tmp_path)), "one.parquet", clips, ClipReader(TINY_AUDIO, 10))
    assert summary["rows"] == 2
    assert [entry["clip_id"] for entry in summary["quarantine"]] == list(reasons)
    for entry in summary["quarantine"]:
        assert entry["reason"].startswith(reasons[entry["clip_id"]])
        assert entry["path"] == str(tmp_path / entry["clip_id"])


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(rows=st.lists(st.tuples(text, text, text), max_size=5))
def test_the_quarantine_list_reads_back(rows: list[tuple[str, str, str]]) -> None:
    entries = [dict(zip(("clip_id", "path", "reason"), row, strict=True)) for row in rows]
    content = quarantine_csv(entries).decode()
    assert list(csv.DictReader(io.StringIO(content, newline=""))) == entries
    assert content.startswith("clip_id,path,reason")


def test_only_missing_and_damaged_shards_are_computed(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 40)
    shards = Folder(str(tmp_path / "shards"))
    plans = plan_shards(clips, TINY_AUDIO, 0.1)

    def missing(**data: Any) -> list[int]:
        return missing_shards(plans, shards, replace(TINY, data=replace(TINY.data, **data)), Tally(clips, plans))

    assert missing() == list(range(len(plans))) == [0, 1, 2]
    reader = ClipReader(TINY_AUDIO, 10)
    for plan in plans:
        write_shard(shards, plan.name, clips.slice(plan.start, plan.stop - plan.start), reader)
    assert missing() == []
    assert missing(compression="zstd") == []
    assert missing(verify=True) == [0, 1, 2]
    Path(shards.path(plans[0].name)).unlink()
    Path(shards.path(plans[2].name)).write_bytes(b"PAR1")
    assert missing() == [0, 2]
    Path(shards.path(plans[1].name + DAMAGED)).touch()
    assert missing() == [0, 1, 2]
