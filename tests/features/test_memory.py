"""What a process holds of every clip of a long table: next to nothing of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymae.config import to_dict
from raymae.datasets.rows import fingerprint
from raymae.features.pages import PAGES
from raymae.features.store import ROW_GROUP, SHARDS, FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.mapped import LEAST_ROWS
from tests.support.audio_files import TINY_AUDIO
from tests.support.paths import ROOT

CLIPS = 200_000
MOST = 28
"""Bytes a clip: 50 MB for the 1.8 million of AudioSet."""
SHARD = 256

OPEN = """
import re, sys
import numpy as np
from raymae.config import Config, FinetuneConfig
from raymae.features.store import SHARDS
from raymae.features.streaming import StreamedClips
from raymae.storage.folder import Folder
from raymae.storage.mapped import SharedTables, release_memory
from raymae.training.spec import StageSpec, labelled_rows, shared_targets

def private():
    # what is mapped from files isn't: one process alone would count all of it as its own
    return 1024 * int(re.search(r"Anonymous: *([0-9]+) kB", open("/proc/self/smaps_rollup").read())[1])

def opened(folder, config, name):
    root = Folder(folder)
    tables = SharedTables(sys.argv[3])
    store = StreamedClips(root / "artifacts/prepare/test", root / SHARDS, tables=tables)
    spec = StageSpec(name=name, kind=name, config=config, artifact=root / "x", store=store)
    rows = np.arange(0, len(store), 1000)
    names = store.clip_ids.take(rows), store.clips.select(["path", "seconds"]).take(rows)
    targets = shared_targets(labelled_rows(spec)[1], tables) if name == "finetune" else None
    held = spec, spec.order(), spec.always_masks, store.recordings, store._pages, targets
    release_memory()
    return held, names

for name in ("pretrain", "finetune"):
    config = Config(finetune=FinetuneConfig(labels="multi"))
    short = opened(sys.argv[1], config, name)
    before = private()
    long = opened(sys.argv[2], config, name)
    print((private() - before) / (len(long[0][0].store) - len(short[0][0].store)))
"""


def write_table_store(folder: Path, count: int) -> FeatureStore:
    """A store of so many clips, without its shards."""
    root = Folder(str(folder))
    store = FeatureStore(root / "artifacts/prepare/test", root / SHARDS)
    names = [f"{number:011x}_{number % 300}000" for number in range(count)]
    texts = {
        "clip_id": names,
        "path": [f"/data/audioset/unbalanced_train_segments/{name}.flac" for name in names],
        "scene_label": ["Speech;Music" if number % 3 else "Music;Vehicle;Car" for number in range(count)],
        "group": names,
        "split": ["train" if number % 50 else "val" for number in range(count)],
        "source": ["audioset"] * count,
        "recording": names,
    }
    columns = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    store.folder.write_table("clips.parquet", pa.table(columns | {"weight": np.ones(count), "seconds": np.ones(count)}))
    sizes = np.diff(np.append(np.arange(0, count, SHARD), count))
    groups = np.concatenate([np.minimum(ROW_GROUP, size - np.arange(0, size, ROW_GROUP)) for size in sizes])
    ends = np.append(0, np.cumsum(groups))
    frames = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.full(count, 64, np.int32)))
    sums = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.zeros(count, np.uint32)))
    pages = {"start": np.arange(len(groups)), "crc32": sums, "valid_frames": frames}
    store.folder.write_table(PAGES, pa.table(pages))
    shards = [{"name": f"{number:016x}.parquet", "rows": size} for number, size in enumerate(sizes.tolist())]
    store.folder.write_json("manifest.json", {"audio": to_dict(TINY_AUDIO), "shards": shards})
    store.folder.finish({})
    return store


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in /proc")
def test_a_process_holds_next_to_nothing_of_every_clip(tmp_path: Path) -> None:
    short, long = (str(tmp_path / name) for name in ("short", "long"))
    write_table_store(tmp_path / "short", LEAST_ROWS)
    write_table_store(tmp_path / "long", CLIPS)
    for _ in ("writes the shared files", "finds them"):  # the one that writes keeps some MB of what it read
        command = [sys.executable, "-c", OPEN, short, long, str(tmp_path / "node")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = dict(zip(("pretrain", "finetune"), map(float, done.stdout.split()), strict=True))
    assert max(found.values()) < MOST, f"a process holds bytes of its own for every clip: {found}"


def test_a_fingerprint_is_the_same_in_parts_of_any_size() -> None:
    texts = pa.array([None if number % 7 == 3 else f"clip {number % 1000}" for number in range(70_000)])
    table = pa.table({"clip_id": texts, "weight": np.arange(len(texts)) / 7})
    pieces = pa.concat_tables([table.slice(0, 10), table.slice(10, 1000), table.slice(1010)])
    assert fingerprint(table, table.column_names) == fingerprint(pieces, table.column_names)
    assert fingerprint(table, table.column_names) != fingerprint(table.slice(1), table.column_names)
