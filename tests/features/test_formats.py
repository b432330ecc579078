"""Recordings in odd formats through `prepare`: cut into clips by their length, every second stored, or quarantined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raymae.audio.clip_reader import ClipReader
from raymae.audio.windows import least_samples
from raymae.config import Config, DataConfig
from raymae.datasets.recordings import load_clips
from raymae.features.write import plan_shards, write_shard
from raymae.storage.folder import Folder, open_storage
from tests.support.audio_files import TINY_AUDIO
from tests.support.format_cases import CASES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, list[dict[str, str]]]:
    """The clips of all cases, and what was quarantined of them."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (make, _) in CASES.items():
        (folder / name).write_bytes(make())
    (folder / "t.csv").write_text("\n".join(["filename", *CASES]) + "\n")
    config = Config(data=DataConfig(dataset="table", tables=(f"{folder}/t.csv",)), audio=TINY_AUDIO)
    clips = load_clips(config, open_storage(str(tmp_path_factory.mktemp("storage"))))
    reader, bad = ClipReader(TINY_AUDIO, 20), []
    for plan in plan_shards(clips, TINY_AUDIO, 1.0):
        part = clips.slice(plan.start, plan.stop - plan.start)
        bad += write_shard(Folder(str(folder / "shards")), plan.name, part, reader)["quarantine"]
    return clips, bad


@pytest.mark.parametrize("name", CASES)
def test_every_second_is_stored_or_named(prepared: tuple[pa.Table, list[dict[str, str]]], name: str) -> None:
    clips, bad = prepared
    own = clips.filter(pc.equal(clips["recording"], name))
    reasons = [one["reason"] for one in bad if Path(one["path"]).name == name and not one.get("silent")]
    right = CASES[name][1]
    if isinstance(right, str):
        assert reasons
        assert all(reason.startswith(right) for reason in reasons)
    else:
        assert reasons == []
        seconds = pc.sum(own["seconds"]).as_py()
        assert right - least_samples(TINY_AUDIO) / TINY_AUDIO.sample_rate - 0.05 <= seconds <= right + 0.05
        assert len(own) == max(1, int(np.ceil((seconds - 1e-3) / TINY_AUDIO.clip_seconds)))
