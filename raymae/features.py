"""`prepare`: audio to feature store with Ray Data, one shard per task, bad files quarantined."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raymae.artifacts import Folder
from raymae.config import AudioConfig, Config, redact, to_dict
from raymae.store import ClipReader, ShardPlan, plan_shards, read_summary, write_shard

ASKED = "asked.parquet"
"""The clips that were asked for, bad ones included, as the workers read them: a row group per shard."""


class ShardWriter:
    """A Ray Data worker that turns row groups of the asked clips into shards; it holds one of them at a time."""

    def __init__(self, shards: Folder, audio: AudioConfig, timeout: float, artifact: Folder) -> None:
        self.shards = shards
        self.asked = pq.ParquetFile(artifact.open(ASKED))
        self.reader = ClipReader(audio, timeout)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        started = time.perf_counter()
        clips = self.asked.read_row_group(int(batch["shard"][0]))
        write_shard(self.shards, clips["shard"][0].as_py(), clips, self.reader)
        return {"clips": [len(clips)], "seconds": [time.perf_counter() - started]}


def ask(clips: pa.Table, plans: list[ShardPlan], artifact: Folder) -> None:
    """Write the clips of all shards for the workers."""
    names = pa.DictionaryArray.from_arrays(
        np.repeat(np.arange(len(plans), dtype=np.int32), [plan.stop - plan.start for plan in plans]),
        [plan.name for plan in plans],
    )
    table = clips.select(["clip_id", "path"]).append_column("shard", names)
    artifact.write_table(ASKED, table, row_group_size=plans[0].stop - plans[0].start)


def featurize(
    missing: list[int], artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> float:
    """Write the shards of these numbers with parallel CPU workers; the mean seconds of work in each of them."""
    workers = max(1, min(len(missing), config.compute.data_workers or int(ray.cluster_resources().get("CPU", 1))))
    written = ray.data.from_arrow([pa.table({"shard": [number]}) for number in missing]).map_batches(
        ShardWriter,
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=workers, max_size=workers),
        fn_constructor_args=(shards, config.audio, config.data.file_timeout, artifact),
    )
    seconds = 0.0
    for row in written.iter_rows():
        progress(row["clips"])
        seconds += row["seconds"]
    return seconds / workers


def missing_shards(clips: pa.Table, shards: Folder, config: Config) -> tuple[list[ShardPlan], list[int]]:
    """All shards of a clip table, and the numbers of those that don't stand yet."""
    plans = plan_shards(clips, config.audio, config.data.shard_mb)
    standing = set(shards.names())
    missing = [
        number
        for number, plan in enumerate(plans)
        if plan.name not in standing or read_summary(shards, plan.name) is None
    ]
    return plans, missing


def prepare(
    clips: pa.Table, artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> dict[str, Any]:
    """Build the feature store of a clip table; what stands already is not computed again.

    Raises ValueError when more files are bad than `data.max_bad_share` allows.
    """
    plans, missing = missing_shards(clips, shards, config)
    progress(len(clips) - sum(plans[number].stop - plans[number].start for number in missing))
    ask(clips, plans, artifact)
    work_seconds = featurize(missing, artifact, shards, config, progress) if missing else 0.0
    summaries = [read_summary(shards, plan.name) or {} for plan in plans]
    quarantine = [entry for summary in summaries for entry in summary["quarantine"]]
    artifact.write_bytes("quarantine.csv", quarantine_csv(quarantine))
    if len(quarantine) > config.data.max_bad_share * len(clips):
        first = quarantine[0]
        raise ValueError(
            f"{len(quarantine)} of {len(clips)} files can't be read, more than data.max_bad_share = "
            f"{config.data.max_bad_share}; the first: {first['path']}: {first['reason']}. "
            f"All of them: {redact(artifact.url)}/quarantine.csv"
        )
    bad = pa.array([entry["clip_id"] for entry in quarantine], pa.string())
    kept = clips.filter(pc.invert(pc.is_in(clips["clip_id"], bad)))
    artifact.write_table("clips.parquet", kept)
    manifest = {
        "format": 1,
        "audio": to_dict(config.audio),
        "shape": [config.audio.n_frames, config.audio.n_mels],
        "dtype": "float16",
        "shards": [{"name": p.name, "rows": s["rows"]} for p, s in zip(plans, summaries, strict=True)],
    }
    artifact.write_json("manifest.json", manifest)
    return {
        "clips": len(kept),
        "hours": sum(summary["seconds"] for summary in summaries) / 3600,
        "quarantined": len(quarantine),
        "shards": len(plans),
        "shards_computed": len(missing),
        "work_seconds": work_seconds,
    }


def quarantine_csv(entries: list[dict[str, str]]) -> bytes:
    """The quarantine list as CSV: clip_id, path, reason."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["clip_id", "path", "reason"])
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().encode()
