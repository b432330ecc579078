"""A clip's time limit counts its decoding alone, and what was refused for a passing reason is asked for again."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymae.audio import clip_reader
from raymae.audio.clip_reader import ClipReader, NoAnswerError, TimeLimitError
from raymae.cluster.prepare import missing_shards
from raymae.config import DataConfig
from raymae.features.manifest import Tally
from raymae.features.write import plan_shards, write_shard
from raymae.pipeline.plan.plan import Plan
from raymae.storage.folder import Folder
from tests.support.audio_files import TINY_AUDIO, write_clips
from tests.support.training import TINY

LIMIT = 0.75


def decoder(monkeypatch: pytest.MonkeyPatch, seconds: float, computing: float) -> ClipReader:
    """A reader whose decoder takes some seconds, a part of which it computes; the storage is quick."""

    def read(*_: Any) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.thread_time()
            while time.thread_time() - began < 0.02 * computing:
                pass
            time.sleep(0.02 * (1 - computing))
        yield np.random.default_rng(0).normal(size=8000).astype(np.float32)

    monkeypatch.setattr(clip_reader, "open_clip", lambda path: b"")
    monkeypatch.setattr(clip_reader, "read_spans", read)
    return ClipReader(TINY_AUDIO, LIMIT)


def test_a_busy_machine_costs_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoder(monkeypatch, 3 * LIMIT, 0.1)("a.wav")[1] == TINY_AUDIO.n_frames


def test_too_much_computing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeLimitError, match=f"^not decoded within {LIMIT} s of computing$"):
        decoder(monkeypatch, 6, 1.0)("a.wav")


def test_a_decoder_that_does_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = decoder(monkeypatch, 0, 0.0)
    monkeypatch.setattr(clip_reader, "read_spans", lambda *_: [time.sleep(6)])
    began = time.monotonic()
    with pytest.raises(NoAnswerError, match=f"^nothing happened while it was read, for {LIMIT} s$"):
        reader("a.wav")
    assert time.monotonic() - began < 6


def test_compiling_counts_for_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(clip_reader.LogMel, "__call__", lambda self, wave: calls.append(len(wave)))
    ClipReader(TINY_AUDIO, LIMIT)
    assert calls == [TINY_AUDIO.win_length]


@pytest.mark.parametrize(
    ("fault", "again", "with_more_time"),
    [(NoAnswerError("why"), True, True), (TimeLimitError("why"), False, True), (None, False, False)],
)
def test_what_was_refused_for_a_passing_reason_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception | None, again: bool, with_more_time: bool
) -> None:
    clips = write_clips(tmp_path / "audio", 20)
    first = clips["path"][0].as_py()
    config = replace(TINY, storage=str(tmp_path), data=DataConfig(shard_mb=0.1))
    reader = ClipReader(TINY_AUDIO, config.data.file_timeout)
    if fault is None:
        Path(first).write_bytes(b"no audio")
    real = ClipReader.each

    def read(self: ClipReader, path: str, spans: Any) -> Any:
        return [fault] if fault is not None and path == first else real(self, path, spans)

    monkeypatch.setattr(ClipReader, "each", read)
    plan = Plan(config, clips, Folder(str(tmp_path)), "prepare")
    artifact, plans = plan.nodes["prepare"].artifact, plan_shards(clips, TINY_AUDIO, 0.1)
    tally = Tally(clips, plans)
    for number, one in enumerate(plans):
        tally.add(number, write_shard(plan.shards, one.name, clips.slice(one.start, one.stop - one.start), reader))
    artifact.write_table("clips.parquet", clips)
    artifact.write_json("manifest.json", tally.manifest(TINY_AUDIO))
    artifact.finish({})

    def asked(**data: Any) -> bool:
        changed = replace(config, data=replace(config.data, **data))
        reused = Plan(changed, clips, Folder(str(tmp_path)), "prepare").nodes["prepare"].reused
        assert missing_shards(plans, plan.shards, changed, Tally(clips, plans)) == ([] if reused else [0])
        return not reused

    assert asked() == again
    assert asked(file_timeout=2 * config.data.file_timeout) == with_more_time
