"""`prepare`: audio to feature store with Ray Data, one shard per task, bad files quarantined."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raymae.artifacts import Folder
from raymae.config import AudioConfig, Config, redact, to_dict
from raymae.store import ClipReader, ShardPlan, plan_shards, read_summary, write_shard

ASKED = "asked.parquet"
"""The clips that were asked for, bad ones included, as the workers read them."""


class ShardWriter:
    """A Ray Data worker that turns rows of the clip table into shards."""

    def __init__(
        self, shards: Folder, audio: AudioConfig, timeout: float, plans: list[ShardPlan], artifact: Folder
    ) -> None:
        self.shards, self.plans = shards, plans
        with artifact.open(ASKED) as file:
            self.clips = pq.read_table(file)
        self.reader = ClipReader(audio, timeout)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        started = time.perf_counter()
        plan = self.plans[int(batch["id"][0])]
        rows = self.clips.slice(plan.start, plan.stop - plan.start)
        write_shard(self.shards, plan.name, rows, self.reader)
        return {"clips": [len(rows)], "seconds": [time.perf_counter() - started]}


def featurize(
    missing: list[ShardPlan], artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> float:
    """Write the missing shards with parallel CPU workers; the mean seconds of work in each of them."""
    workers = min(len(missing), config.compute.data_workers or int(ray.cluster_resources().get("CPU", 1)))
    written = ray.data.range(len(missing), override_num_blocks=len(missing)).map_batches(
        ShardWriter,
        batch_size=1,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, workers)),
        fn_constructor_args=(shards, config.audio, config.data.file_timeout, missing, artifact),
    )
    seconds = 0.0
    for row in written.iter_rows():
        progress(row["clips"])
        seconds += row["seconds"]
    return seconds / max(1, workers)


def missing_shards(clips: pa.Table, shards: Folder, config: Config) -> tuple[list[ShardPlan], list[ShardPlan]]:
    """All shards of a clip table, and those that don't stand yet."""
    plans = plan_shards(clips, config.audio, config.data.shard_mb)
    standing = set(shards.names())
    return plans, [plan for plan in plans if plan.name not in standing or read_summary(shards, plan.name) is None]


def prepare(
    clips: pa.Table, artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> dict[str, Any]:
    """Build the feature store of a clip table; what stands already is not computed again.

    Raises ValueError when more files are bad than `data.max_bad_share` allows.
    """
    plans, missing = missing_shards(clips, shards, config)
    progress(len(clips) - sum(plan.stop - plan.start for plan in missing))
    artifact.write_table(ASKED, clips.select(["clip_id", "path"]))
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
