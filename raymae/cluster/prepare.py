"""The stage `prepare`: audio to feature store with Ray Data, one shard per task, bad files quarantined."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from raymae.audio.clip_reader import ClipReader
from raymae.audio.errors import SilentError
from raymae.cluster.errors import unwrap_errors
from raymae.cluster.resources.demand import await_room
from raymae.cluster.resources.pools import growing
from raymae.config import Config, redact
from raymae.features.manifest import QUARANTINE, Tally, quarantine_csv, quarantine_rows
from raymae.features.pages import PAGES
from raymae.features.shard import DAMAGED, asks_again, read_summary, usable_shards
from raymae.features.write import ShardPlan, plan_shards, write_shard
from raymae.storage.checksums import CHECKSUMS
from raymae.storage.folder import Folder
from raymae.training.guards.deadline import FOREVER, Deadline

ASKED = "asked.parquet"
"""The clips of the clip table, bad ones included, as the workers read them: a row group per shard."""
ASKED_COLUMNS = ["clip_id", "path", "start_seconds", "end_seconds"]
_THREADS = 32
_READ_AHEAD = 1024
_BLOCKS = 4096
"""Most blocks of shard numbers that are passed to Ray: the driver holds an object for each."""


class ShardWriter:
    """A Ray Data worker that turns row groups of `ASKED` into shards, one at a time."""

    def __init__(self, shards: Folder, config: Config, artifact: Folder) -> None:
        self.shards, self.data = shards, config.data
        self.asked = pq.ParquetFile(artifact.open(ASKED))
        self.reader = ClipReader(config.audio, config.data.file_timeout)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        started = time.perf_counter()
        number, name = int(batch["shard"][0]), str(batch["name"][0])
        clips = self.asked.read_row_group(number)
        found = read_summary(self.shards, name, verify=True) if self.data.verify else None
        if found and any(asks_again(entry, self.data.file_timeout) for entry in found["quarantine"]):
            found = None
        summary = found or self._write(name, clips)
        self.shards.remove(name + DAMAGED)
        return {
            "shard": [number],
            "clips": [len(clips)],
            "computed": [found is None],
            "summary": [json.dumps(summary)],
            "seconds": [time.perf_counter() - started],
        }

    def _write(self, name: str, clips: pa.Table) -> dict[str, Any]:
        features = self.data.store == "parquet"
        return write_shard(self.shards, name, clips, self.reader, self.data.compression, features)


def ask(clips: pa.Table, plans: list[ShardPlan], artifact: Folder) -> None:
    """Write `ASKED`, the clips of all shards, for the workers."""
    columns = [name for name in ASKED_COLUMNS if name in clips.column_names]
    artifact.write_table(ASKED, clips.select(columns), row_group_size=plans[0].stop - plans[0].start)


def featurize(
    numbers: list[int], tally: Tally, artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> tuple[int, float]:
    """Write (or, with `data.verify`, check) the shards of these numbers with parallel CPU workers.

    Returns how many were written and the workers' mean seconds of computing.
    """
    limit = min(len(numbers), config.compute.data_workers or len(numbers))
    workers = max(1, min(limit, int(ray.cluster_resources().get("CPU", 1))))
    size = -(-len(numbers) // _BLOCKS)
    blocks = [
        pa.table({"shard": part, "name": [tally.plans[number].name for number in part]})
        for part in (numbers[start : start + size] for start in range(0, len(numbers), size))
    ]
    written = ray.data.from_arrow(blocks).map_batches(
        ShardWriter,
        batch_size=1,
        num_cpus=1,
        compute=growing(workers, limit),
        fn_constructor_args=(shards, config, artifact),
    )
    computed, seconds = 0, 0.0
    for row in unwrap_errors(written.iter_rows()):
        tally.add(row["shard"], json.loads(row["summary"]))
        progress(row["clips"])
        computed += row["computed"]
        seconds += row["seconds"]
    standing = int(ray.cluster_resources().get("CPU", 1))  # where nodes have joined, more than at the start
    return computed, seconds / max(workers, min(limit, standing))


def summaries(plans: list[ShardPlan], shards: Folder, sizes: dict[str, int]) -> Iterator[dict[str, Any] | None]:
    """The summary of every usable shard, None for every other: one listing, then footers, many at once.

    A shard whose size differs from that in `sizes` is not usable.
    """
    listed = usable_shards(shards)

    def look(plan: ShardPlan) -> dict[str, Any] | None:
        found = listed.get(plan.name)
        usable = found is not None and found == sizes.get(plan.name, found)
        return read_summary(shards, plan.name) if usable else None

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(plans), _READ_AHEAD):  # all at once would take memory for all of them
            yield from pool.map(look, plans[start : start + _READ_AHEAD])


def known_sizes(artifact: Folder) -> dict[str, int]:
    """The size of every shard in bytes by its name, from an earlier manifest; empty without one."""
    try:
        return {shard["name"]: shard["size"] for shard in artifact.read_json("manifest.json")["shards"]}
    except (OSError, ValueError):  # missing or damaged
        return {}


def missing_shards(
    plans: list[ShardPlan], shards: Folder, config: Config, tally: Tally, sizes: dict[str, int] | None = None
) -> list[int]:
    """The numbers of the shards that are missing or have to be checked; the others are added to the tally."""
    if config.data.verify:
        return list(range(len(plans)))
    missing = []
    for number, summary in enumerate(summaries(plans, shards, sizes or {})):
        if summary is None or any(asks_again(entry, config.data.file_timeout) for entry in summary["quarantine"]):
            missing.append(number)
        else:
            tally.add(number, summary)
    return missing


def prepare(
    clips: pa.Table,
    artifact: Folder,
    shards: Folder,
    config: Config,
    progress: Callable[[int], Any],
    deadline: Deadline = FOREVER,
) -> dict[str, Any]:
    """Build the feature store of a clip table; usable shards are not computed again.

    Raises ValueError if more files are bad than `data.max_bad_share` allows.
    """
    for name in ("done.json", CHECKSUMS):  # a store that is being repaired has them
        artifact.remove(name)
    plans = plan_shards(clips, config.audio, config.data.shard_mb)
    tally = Tally(clips, plans)
    missing = missing_shards(plans, shards, config, tally, known_sizes(artifact))
    progress(len(clips) - sum(plans[number].stop - plans[number].start for number in missing))
    ask(clips, plans, artifact)
    if missing:
        await_room("workers that decode audio", {"CPU": 1.0}, config.compute, deadline)
    computed, work_seconds = featurize(missing, tally, artifact, shards, config, progress) if missing else (0, 0.0)
    quarantine = tally.quarantine()
    artifact.write_bytes(QUARANTINE, quarantine_csv(quarantine_rows(quarantine)))
    bad = quarantine.filter(pc.not_equal(quarantine["reason"], str(SilentError())))
    if len(bad) > config.data.max_bad_share * len(clips):
        first = bad.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"{len(bad)} of {len(clips)} files can't be read, more than data.max_bad_share = "
            f"{config.data.max_bad_share}; the first: {first['path']}: {first['reason']}. "
            f"All of them: {redact(artifact.url)}/{QUARANTINE}"
        )
    if len(quarantine) == len(clips):
        raise ValueError(f"no clip holds any sound; all of them: {redact(artifact.url)}/{QUARANTINE}")
    kept = clips.filter(pc.invert(pc.is_in(clips["clip_id"], quarantine["clip_id"].combine_chunks())))
    artifact.write_table("clips.parquet", kept)
    if (pages := tally.pages()) is not None:
        artifact.write_table(PAGES, pages)
    manifest = tally.manifest(config.audio)
    artifact.write_json("manifest.json", manifest)
    return {
        "clips": len(kept),
        "hours": manifest["hours"],
        "quarantined": len(bad),
        "silent": len(quarantine) - len(bad),
        **manifest["statistics"],
        "shards": len(plans),
        "shards_computed": computed,
        "work_seconds": work_seconds,
    }
