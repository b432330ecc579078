"""Windows of the feature store and the micro-batches cut from them. No torch: data workers import this."""

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

if TYPE_CHECKING:
    import torch

    from raymae.features.store import FeatureStore


@dataclass(frozen=True)
class Window:
    """What is read and sent at once: the rows of one slot for the steps of one round."""

    positions: Rows
    rows: Rows
    log_mel: NDArray[np.float16]
    valid_frames: NDArray[np.int32]


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: `index` is its place in the run, which keys every random draw."""

    index: int
    rows: Rows
    log_mel: NDArray[np.float16]
    valid_frames: NDArray[np.int32]

    def to_torch(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mels (B, T, F) float32 and valid frames (B,) int64 on a device.

        To a GPU from pinned memory, so that nothing waits: the copy queues behind the step before it.
        """
        import torch

        with warnings.catch_warnings():  # features are read-only, in shared memory: what is returned is a copy
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            log_mel, valid_frames = torch.from_numpy(self.log_mel), torch.tensor(self.valid_frames)
        if device.type == "cuda":
            log_mel, valid_frames = log_mel.pin_memory(), valid_frames.pin_memory()
        return log_mel.to(device, non_blocking=True).float(), valid_frames.to(device, non_blocking=True).long()

    def fingerprint(self, clip_ids: pa.LargeStringArray) -> int:
        """64 bits that name the batch's place in the run and its clips, in their order, by the store's `clip_ids`.

        Sums modulo 2^64 of such fingerprints are the same for the same batches, whoever saw which of them. Takes 8 µs
        for 64 clips, whatever the size of the store.
        """
        names = "\n".join(clip_ids.take(pa.array(self.rows)).to_pylist())
        return mix(self.index, zlib.crc32(names.encode()))


def read_window(store: FeatureStore, order: Order, number: int) -> Window:
    """Read window `number` of the order from the store."""
    positions = order.window_positions(number)
    rows = order.rows_at(positions)
    return Window(positions, rows, *store.read(rows))


def rank_slots(order: Order, rank: int, world_size: int) -> range:
    """The slots of a step that are a rank's; an error if there is no equal share for each."""
    if order.slots % world_size:
        raise ValueError(
            f"global_batch_size / micro_batch_size = {order.slots} must be a multiple of the {world_size} workers"
        )
    return range(rank, order.slots, world_size)


def micro_batches(
    order: Order, windows: Iterator[Window], rank: int, world_size: int, step: int
) -> Iterator[MicroBatch]:
    """Cut a rank's windows, from the round of `step` on, into micro-batches; checks that none is out of place."""
    slots = rank_slots(order, rank, world_size)
    size = order.micro_batch_size
    while step < order.steps:
        first = order.first_window(step)
        steps = order.round_steps(first)
        mine = [next(windows) for _ in slots]
        for slot, window in zip(slots, mine, strict=True):
            if not np.array_equal(window.positions, order.window_positions(first + slot)):
                raise RuntimeError(f"window {first + slot} arrived out of order at rank {rank}")
        while step < steps.stop:
            part = slice((step - steps.start) * size, (step - steps.start + 1) * size)
            for slot, window in zip(slots, mine, strict=True):
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
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
