"""Windows of the feature store, and a rank's mixing groups of every step. Without torch: data workers import this."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.features.draws import mix
from raymae.training.batches import reader_threads
from raymae.training.batches.order import Order
from raymae.training.batches.prefetch import Prefetch
from raymae.training.batches.shifts import read_shifted

if TYPE_CHECKING:
    from raymae.features.store import FeatureStore


AHEAD_ROWS = 2048
"""Clips that a worker reads ahead of object storage: 1.5 s of an H200's work, as long as a window that is late, and is
read again, takes."""


@dataclass(frozen=True)
class Window:
    """The unit that is read and sent: the rows of one slot for the steps of one round."""

    positions: Rows
    rows: Rows
    values: NDArray[Any]
    """(n, *shape): log-mels or waveforms (`raymae.features.store.FeatureStore.layout`)."""
    valid: NDArray[np.int32]
    """(n,): frames or samples before the padding."""


@dataclass(frozen=True)
class Group:
    """The clips of a mixing group."""

    place: int
    """Place of its first clip in the run; the others follow. Every random draw is keyed by a clip's place."""
    rows: Rows
    values: NDArray[Any]
    valid: NDArray[np.int32]

    def fingerprint(self, clip_ids: pa.LargeStringArray) -> int:
        """A 64-bit hash of the place and the clips, in their order, by the store's `clip_ids`.

        The sum modulo 2^64 over the same groups is the same however workers share them.
        """
        names = "\n".join(clip_ids.take(pa.array(self.rows)).to_pylist())
        return mix(self.place, zlib.crc32(names.encode()))


def read_window(store: FeatureStore, order: Order, number: int) -> Window:
    """Read window `number` of the order from the store."""
    positions = order.window_positions(number)
    rows = order.rows_at(positions)
    if order.shifted:
        return Window(positions, rows, *read_shifted(store, rows, order.epochs_at(positions), order.seed))
    return Window(positions, rows, *store.read_for_training(rows))


def rank_slots(slots: int, rank: int, world_size: int) -> range:
    """The slots of a step that belong to a rank: neighbours, as many as another rank's or one more."""
    assert world_size <= slots, f"{world_size} workers can't share {slots} mixing groups"
    return range(rank * slots // world_size, (rank + 1) * slots // world_size)


def rank_windows(order: Order, rank: int, world_size: int, step: int) -> Iterator[int]:
    """The windows of a rank from the round of `step` on, in the order in which it uses them."""
    for first in range(order.first_window(step), order.windows, order.slots):
        yield from (first + slot for slot in rank_slots(order.slots, rank, world_size))


def rank_steps(
    order: Order, windows: Iterator[Window], rank: int, world_size: int, step: int
) -> Iterator[tuple[int, list[Group]]]:
    """Cut a rank's windows, from the round of `step` on, into its groups of every step: (step, groups).

    RuntimeError if a window is out of order.
    """
    slots, size = rank_slots(order.slots, rank, world_size), order.group_size
    while step < order.steps:
        first = order.first_window(step)
        steps = order.round_steps(first)
        own = [next(windows) for _ in slots]
        for slot, window in zip(slots, own, strict=True):
            if not np.array_equal(window.positions, order.window_positions(first + slot)):
                raise RuntimeError(f"window {first + slot} arrived out of order at rank {rank}")
        while step < steps.stop:
            part = slice((step - steps.start) * size, (step - steps.start + 1) * size)
            yield (
                step,
                [
                    Group(
                        (step * order.slots + slot) * size,
                        window.rows[part],
                        window.values[part],
                        window.valid[part],
                    )
                    for slot, window in zip(slots, own, strict=True)
                ],
            )
            step += 1


def read_groups(
    store: FeatureStore, order: Order, rank: int, world_size: int, step: int
) -> Iterator[tuple[int, list[Group]]]:
    """A rank's mixing groups of every step, whose windows are read ahead."""
    numbers = rank_windows(order, rank, world_size, step)
    depth = windows_ahead(order, rank, world_size, store.shards.is_local)
    windows = iter(Prefetch(lambda number: read_window(store, order, number), numbers, depth))
    return rank_steps(order, windows, rank, world_size, step)


def windows_ahead(order: Order, rank: int, world_size: int, is_local: bool) -> int:
    """How many windows a rank reads ahead: a round of them, or of object storage `AHEAD_ROWS`, which is more where many
    workers share a step."""
    slots = len(rank_slots(order.slots, rank, world_size))
    return slots if is_local else max(slots, AHEAD_ROWS // (order.window_steps * order.group_size))


def ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Run an iterator in a thread, at most `depth` items ahead."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:  # passed to the consumer, which raises it
            put(error)

    reader_threads.start(work, stop, "ahead")
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
