"""The manifest of a feature store, summed up shard by shard; of single clips only the quarantined ones are kept.

Silent clips are quarantined, too, but counted apart: they are no fault of a file.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.audio.errors import SilentError
from raymae.config import AudioConfig
from raymae.features.pages import pages_table
from raymae.features.shard import SILENT
from raymae.features.store import ROW_GROUP
from raymae.features.write import ShardPlan
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder

FORMAT = 3
QUARANTINE = "quarantine.csv"
AGAIN = ("passing", "limit")
"""Fields of a quarantined clip that a later run reads again (`raymae.features.shard.asks_again`)."""
_SUMS = ("clips", "quarantined", "silent", "seconds", "frames", "total", "square")
_BUFFERED = 10_000


class Tally:
    """Sums over the summaries of all shards of a clip table, added in any order, which changes no bit of the manifest.

    Sums are kept by shard until the end, because floats added in another order have another sum.
    """

    def __init__(self, clips: pa.Table, plans: list[ShardPlan]) -> None:
        self.plans = plans
        self.names = pc.unique(clips["split"]).to_pylist()
        self._split = pc.index_in(clips["split"], pa.array(self.names, pa.string())).to_numpy()
        self._clip_id = clips["clip_id"]
        self._sums = {name: np.zeros((len(plans), len(self.names))) for name in _SUMS}
        self._shards: list[dict[str, Any] | None] = [None] * len(plans)
        self._pages: list[dict[str, Any]] = [{}] * len(plans)
        self._compression: Counter[str] = Counter()
        self._bad: list[pa.Table] = []
        self._again: list[dict[str, Any]] = []
        self._buffer: list[dict[str, Any]] = []

    def add(self, number: int, summary: dict[str, Any]) -> None:
        """Add the summary of shard `number`."""
        plan = self.plans[number]
        split = self._split[plan.start : plan.stop]
        if summary["quarantine"]:
            ids = self._clip_id.slice(plan.start, plan.stop - plan.start)
            silent = _among(ids, [entry for entry in summary["quarantine"] if entry.get(SILENT)])
            bad = _among(ids, summary["quarantine"])
            self._count(number, "silent", split[silent], np.ones(silent.sum()))
            self._count(number, "quarantined", split[bad & ~silent], np.ones((bad & ~silent).sum()))
            split = split[~bad]
            self._buffer += [{"shard": number, **entry} for entry in summary["quarantine"]]
            self._again += [one for one in ({k: e[k] for k in AGAIN if k in e} for e in summary["quarantine"]) if one]
            if len(self._buffer) >= _BUFFERED:
                self._flush()
        clips = {name: np.array(values, np.float64) for name, values in summary["clips"].items()}
        frames = clips["frames"]
        self._count(number, "clips", split, np.ones(summary["rows"]))
        self._count(number, "seconds", split, clips["seconds"])
        self._count(number, "frames", split, frames)
        self._count(number, "total", split, frames * clips["mean"])
        self._count(number, "square", split, frames * clips["mean_square"])
        self._compression[summary["compression"]] += 1
        pages = {name: summary[name] for name in ("rows", "starts", "sums") if name in summary}
        self._pages[number] = pages | {"clips": {"frames": summary["clips"]["frames"]}}
        self._shards[number] = {"name": plan.name, **{key: summary[key] for key in ("rows", "size", "crc32")}}

    def _count(self, number: int, name: str, split: Any, values: Any) -> None:
        self._sums[name][number] = np.bincount(split, values, len(self.names))

    def _sum(self, name: str, place: int) -> float:
        return float(self._sums[name][:, place].sum())

    def _flush(self) -> None:
        schema = pa.schema([("shard", pa.int64()), *((name, pa.string()) for name in ("clip_id", "path", "reason"))])
        self._bad.append(pa.Table.from_pylist(self._buffer, schema))
        self._buffer = []

    def quarantine(self) -> pa.Table:
        """clip_id, path and reason of the quarantined clips, in the order of the shards."""
        self._flush()
        self._bad = [pa.concat_tables(self._bad)]
        order = np.argsort(self._bad[0]["shard"].to_numpy(), kind="stable")
        return self._bad[0].take(order).drop_columns(["shard"])

    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation of the log-mels over the valid frames of the training split, or else of the pool.

        Both are None if neither split has a clip. Nothing is normalised by them: they describe log-mels to which
        `audio.norm_mean` and `audio.norm_scale` are already applied, and serve to choose or check those two. Before
        normalisation the mean was norm_mean + norm_scale · mean and the deviation norm_scale · std.
        """
        for name in ("train", "pool"):
            place = self.names.index(name) if name in self.names else None
            if place is not None and self._sum("frames", place):
                total, square, frames = (self._sum(key, place) for key in ("total", "square", "frames"))
                mean = total / frames
                return {"split": name, "mean": mean, "std": max(0.0, square / frames - mean**2) ** 0.5}
        return {"split": None, "mean": None, "std": None}

    def pages(self) -> pa.Table | None:
        """The table of `raymae.features.pages.PAGES`, once every shard has been added; None where shards are
        compressed or hold no features."""
        return pages_table(self._pages, ROW_GROUP)

    def manifest(self, audio: AudioConfig) -> dict[str, Any]:
        """The manifest of the store, once every shard has been added."""
        assert all(self._shards), "a shard has not been added"
        splits = {
            name: {
                "clips": int(self._sum("clips", place)),
                "hours": self._sum("seconds", place) / 3600,
                **{key: int(self._sum(key, place)) for key in ("quarantined", "silent")},
            }
            for place, name in enumerate(self.names)
        }
        totals = {
            key: sum(split[key] for split in splits.values()) for key in ("clips", "hours", "quarantined", "silent")
        }
        return {
            "format": FORMAT,
            "config_hash": digest(audio.front_end()),
            "audio": audio.front_end(),
            "shape": [audio.n_frames, audio.n_mels],
            "dtype": "float16",
            **totals,
            "splits": splits,
            "statistics": self.statistics(),
            "quarantine": QUARANTINE,
            "again": sorted(self._again, key=str),
            "compression": dict(sorted(self._compression.items())),
            "shards": self._shards,
        }


def _among(ids: pa.ChunkedArray, entries: list[dict[str, Any]]) -> NDArray[np.bool_]:
    """Which of some clip_ids are among the quarantined `entries`."""
    wanted = pa.array([entry["clip_id"] for entry in entries], pa.string())
    return np.asarray(pc.is_in(ids, wanted).to_numpy())


def quarantine_rows(table: pa.Table) -> Iterator[dict[str, str]]:
    """Iterate over the rows of a quarantine list, converting a few thousand at a time to Python objects."""
    for batch in table.to_batches(_BUFFERED):
        yield from batch.to_pylist()


def silent_clips(prepared: Folder) -> pa.Array:
    """The clip_ids of the silent clips of a store; none where nothing was quarantined."""
    if not prepared.exists(QUARANTINE):
        return pa.array([], pa.string())
    rows = csv.DictReader(io.StringIO(prepared.read_bytes(QUARANTINE).decode()))
    return pa.array([row["clip_id"] for row in rows if row["reason"] == str(SilentError())], pa.string())


def quarantine_csv(entries: Iterable[dict[str, str]]) -> bytes:
    """Write the quarantine list as CSV: clip_id, path, reason."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["clip_id", "path", "reason"])
    writer.writeheader()
    writer.writerows(entries)
    return text.getvalue().encode()
