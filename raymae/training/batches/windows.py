"""Windows of the feature store and the micro-batches cut from them. Without torch: data workers import this."""

from __future__ import annotations

import queue
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.training.batches.order import Order, mix
from raymae.training.batches.shifts import read_shifted

if TYPE_CHECKING:
    import torch

    from raymae.features.store import FeatureStore


@dataclass(frozen=True)
class Window:
    """The unit that is read and sent: the rows of one slot for the steps of one round."""

    positions: Rows
    rows: Rows
    log_mel: NDArray[np.float16]
    valid_frames: NDArray[np.int32]


@dataclass(frozen=True)
class MicroBatch:
    """The clips of one forward pass; `index`, the micro-batch's number in the run, keys every random draw."""

    index: int
    rows: Rows
    log_mel: NDArray[np.float16]
    valid_frames: NDArray[np.int32]

    def to_torch(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mels (B, T, F) float32 and valid frames (B,) int64 on a device.

        Copied to a GPU from pinned memory, asynchronously: the copy queues behind the previous step.
        """
        import torch

        with warnings.catch_warnings():  # features are read-only, in shared memory; a copy is returned
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            log_mel, valid_frames = torch.from_numpy(self.log_mel), torch.tensor(self.valid_frames)
        if device.type == "cuda":
            log_mel, valid_frames = log_mel.pin_memory(), valid_frames.pin_memory()
        return log_mel.to(device, non_blocking=True).float(), valid_frames.to(device, non_blocking=True).long()

    def fingerprint(self, clip_ids: pa.LargeStringArray) -> int:
        """A 64-bit hash of the batch's index and its clips, in their order, by the store's `clip_ids`.

        The sum modulo 2^64 over the same batches is the same however workers share them. Takes 8 µs for 64 clips,
        whatever the size of the store.
        """
        names = "\n".join(clip_ids.take(pa.array(self.rows)).to_pylist())
        return mix(self.index, zlib.crc32(names.encode()))


def read_window(store: FeatureStore, order: Order, number: int) -> Window:
    """Read window `number` of the order from the store."""
    positions = order.window_positions(number)
    rows = order.rows_at(positions)
    if order.shifted:
        return Window(positions, rows, *read_shifted(store, rows, order.epochs_at(positions), order.seed))
    return Window(positions, rows, *store.read(rows))


def rank_slots(order: Order, rank: int, world_size: int) -> range:
    """The slots of a step that belong to a rank; ValueError if the slots can't be shared equally."""
    if order.slots % world_size:
        raise ValueError(
            f"global_batch_size / micro_batch_size = {order.slots} must be a multiple of the {world_size} workers"
        )
    return range(rank, order.slots, world_size)


def micro_batches(
    order: Order, windows: Iterator[Window], rank: int, world_size: int, step: int
) -> Iterator[MicroBatch]:
    """Cut a rank's windows, from the round of `step` on, into micro-batches; RuntimeError if one is out of order."""
    slots = rank_slots(order, rank, world_size)
    size = order.micro_batch_size
    while step < order.steps:
        first = order.first_window(step)
        steps = order.round_steps(first)
        own = [next(windows) for _ in slots]
        for slot, window in zip(slots, own, strict=True):
            if not np.array_equal(window.positions, order.window_positions(first + slot)):
                raise RuntimeError(f"window {first + slot} arrived out of order at rank {rank}")
        while step < steps.stop:
            part = slice((step - steps.start) * size, (step - steps.start + 1) * size)
            for slot, window in zip(slots, own, strict=True):
                yield MicroBatch(
                    step * order.slots + slot, window.rows[part], window.log_mel[part], window.valid_frames[part]
                )
            step += 1


def ahead(items: Iterator[Window], depth: int) -> Iterator[Window]:
    """Run an iterator in a thread, at most `depth` items ahead."""
    ready: queue.Queue[Window | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Window | BaseException | None) -> bool:
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
            put(None)
        except BaseException as error:  # passed to the consumer, which raises it
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
