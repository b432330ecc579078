"""A process that reads a feature store as a training worker does, without torch, and what it measures of itself.

`python -m raymae.benchmark.scale.reader NAME`, one of `READERS`: takes a line with a `Reading` as JSON, answers
`READY`, reads once its input has ended, and prints a `Read`. `read_all` starts such processes and lets them begin at
once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import fsspec.asyn
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymae.benchmark.harness.memory import uss_mb
from raymae.datasets.rows import Rows
from raymae.features.store import ROW_GROUP, SHARDS, FeatureStore, features_of
from raymae.storage.folder import Folder
from raymae.training.batches.order import Order
from raymae.training.batches.windows import rank_windows, read_groups

GROUP = 8
"""Clips of a mixing group."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a process reads: the windows of one rank."""

    url: str
    """Folder of the store."""
    rank: int = 0
    workers: int = 64
    batch: int = 128
    """Clips per step and worker."""
    rounds: int = 4
    """Rounds of windows."""
    most_windows: int | None = None
    """Of `row-groups` and `one-by-one`: how many windows are read."""
    step_seconds: float = 0.0
    """How long the worker sleeps in each step, in place of computing."""

    @cached_property
    def store(self) -> FeatureStore:
        """The store."""
        folder = Folder(self.url)
        return FeatureStore(folder / "prepare", folder / SHARDS)

    @cached_property
    def order(self) -> Order:
        """The order of so many rounds."""
        rows = np.arange(len(self.store))
        found = Order((rows,), (1.0,), seed=0, epochs=1, global_batch_size=self.batch * self.workers, group_size=GROUP)
        epochs = self.rounds * found.window_steps * found.global_batch_size / len(rows)
        return Order((rows,), (1.0,), 0, epochs, found.global_batch_size, GROUP)

    @property
    def windows(self) -> list[int]:
        """The numbers of the rank's windows."""
        return list(islice(rank_windows(self.order, self.rank, self.workers, 0), self.most_windows))


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a process measured; its waits from the end of its first round on."""

    clips: int
    """Clips that were taken, in all."""
    rate: float
    """Clips per second."""
    cpu_seconds: float
    """Of all threads of the process, for all clips."""
    io_seconds: float
    """Of it by the one thread of fsspec that handles all requests."""
    checksum: int
    """Of the first mixing group's log-mels."""
    windows: int = 0
    wait_share: float = 1.0
    """Share of the time for which the worker waited for windows."""
    longest_wait: float = 0.0
    longest_oversleep: float = 0.0
    """How much longer than asked for a sleep took: the worker waited for a core."""
    uss_mb: tuple[float, float] = (0.0, 0.0)
    """Memory of this process alone after a quarter of the steps, and after all."""
    torch: bool = False
    """Whether the process has imported torch."""

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per clip."""
        return 1000 * self.cpu_seconds / self.clips


def read_windows(reading: Reading) -> Read:
    """Take the steps of a rank as the training loop does, and sleep for the time of each."""
    order, store = reading.order, reading.store
    store.read(np.array([0]))  # places of pages, connections
    waits, oversleeps, memory, checksum = [], [0.0], [0.0], 0
    cpu, io, began = time.process_time(), io_seconds(), time.perf_counter()
    asked = later = began
    for step, groups in read_groups(store, order, reading.rank, reading.workers, 0):
        waits.append(time.perf_counter() - asked)
        if step == 0:
            checksum = zlib.crc32(groups[0].values.tobytes())
        if step == order.steps // 4:
            memory.append(uss_mb())
        oversleeps.append(sleep(reading.step_seconds))
        asked = time.perf_counter()
        if step + 1 == order.window_steps:
            later = asked
    counted = waits[order.window_steps :]
    return Read(
        clips=len(waits) * reading.batch,
        rate=len(waits) * reading.batch / (asked - began),
        cpu_seconds=time.process_time() - cpu,
        io_seconds=io_seconds() - io,
        checksum=checksum,
        windows=len(reading.windows),
        wait_share=sum(counted) / (asked - later),
        longest_wait=max(counted),
        longest_oversleep=max(oversleeps),
        uss_mb=(memory[-1], uss_mb()),
        torch="torch" in sys.modules,
    )


def io_seconds() -> float:
    """CPU seconds of fsspec's thread, by which asynchronous file systems talk to their storage."""

    async def used() -> float:
        return time.thread_time()

    return float(fsspec.asyn.sync(fsspec.asyn.get_loop(), used))


def sleep(seconds: float) -> float:
    """Sleep, and return for how much longer than asked for."""
    before = time.perf_counter()
    if seconds:
        time.sleep(seconds)
    return time.perf_counter() - before - seconds


def read_one_by_one(reading: Reading) -> Read:
    """Read a rank's windows one after the other, without a thread, and sleep for the steps of each."""
    store, order = reading.store, reading.order
    store.read(np.array([0]))

    def values() -> Iterator[NDArray[np.float16]]:
        for number in reading.windows:
            yield store.read(order.window_rows(number))[0]
            for _ in range(order.window_steps):
                sleep(reading.step_seconds)

    return one_by_one(values())


def read_row_groups(reading: Reading) -> Read:
    """Read a rank's windows with pyarrow and fsspec as they are: one row group after the other, through s3fs's
    read-ahead."""
    store, files = reading.store, dict[int, pq.ParquetFile]()

    def of_shard(shard: int, rows: Rows) -> NDArray[np.float16]:
        if shard not in files:
            name = store.manifest["shards"][shard]["name"]
            files[shard] = pq.ParquetFile(store.shards.fs.open(store.shards.path(name)))
        groups, index = np.unique(rows // ROW_GROUP, return_inverse=True)
        table = files[shard].read_row_groups(groups.tolist(), columns=["log_mel"])
        return features_of(table["log_mel"], store.audio)[index * ROW_GROUP + rows % ROW_GROUP]

    def values() -> Iterator[NDArray[np.float16]]:
        starts = np.cumsum([0, *(shard["rows"] for shard in store.manifest["shards"])])
        for number in reading.windows:
            rows = reading.order.window_rows(number)
            shards = np.searchsorted(starts, rows, side="right") - 1
            found = np.empty((len(rows), *store.layout.shape), np.float16)
            for shard in np.unique(shards):
                found[shards == shard] = of_shard(int(shard), rows[shards == shard] - starts[shard])
            yield found

    return one_by_one(values())


def one_by_one(values: Iterator[NDArray[np.float16]]) -> Read:
    """What reading windows one after the other takes."""
    clips, windows, checksum = 0, 0, 0
    begun, cpu, io = time.perf_counter(), time.process_time(), io_seconds()
    for found in values:
        checksum = checksum or zlib.crc32(found[:GROUP].tobytes())
        clips, windows = clips + len(found), windows + 1
    return Read(
        clips=clips,
        rate=clips / (time.perf_counter() - begun),
        cpu_seconds=time.process_time() - cpu,
        io_seconds=io_seconds() - io,
        checksum=checksum,
        windows=windows,
    )


READERS = {"windows": read_windows, "one-by-one": read_one_by_one, "row-groups": read_row_groups}
"""Ways of reading by their names on the command line."""


READY = "ready"


def read_all(name: str, readings: Sequence[Reading]) -> list[Read]:
    """Read in a process for each, all of which begin when all are ready; RuntimeError if one of them fails."""
    command = [sys.executable, "-m", __name__, name]
    pipe: Any = subprocess.PIPE
    with ExitStack() as stack:
        started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in readings]
        processes: list[Any] = [stack.enter_context(process) for process in started]
        for process, reading in zip(processes, readings, strict=True):
            stack.callback(process.kill)
            process.stdin.write(json.dumps(asdict(reading)) + "\n")
            process.stdin.flush()
        for process in processes:
            if process.stdout.readline().strip() != READY:
                raise RuntimeError(f"a process that should read ({name}) ended with status {process.wait()}")
        for process in processes:
            process.stdin.close()
        answers = [process.stdout.read() for process in processes]
        if any(process.wait() for process in processes):
            raise RuntimeError(f"a process that reads ({name}) failed")
    return [Read(**json.loads(answer)) for answer in answers]


def main(name: str) -> None:
    """Read once the input has ended, and print what was measured."""
    reading = Reading(**json.loads(sys.stdin.readline()))
    assert reading.order.steps
    print(READY, flush=True)
    sys.stdin.read()
    print(json.dumps(asdict(READERS[name](reading))))


if __name__ == "__main__":
    main(sys.argv[1])
