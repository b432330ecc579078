"""Read items ahead in order, by as many threads as it takes. Without torch: data workers import this."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from raymae.training.batches import reader_threads

Read = TypeVar("Read")

WAITED = 0.01
"""Seconds for which the consumer waits before another thread is started."""
MOST_THREADS = 16
LATE, LEAST_LATE = 3.0, 0.1
"""A read that takes so many times the median of the last ones, and so many seconds, is late."""
JUDGED = 8
"""Reads that have to end before another is called late."""
IDLE = 0.5
"""Seconds after which a thread without room for another item looks again for one that is late."""


@dataclass(eq=False)
class Item(Generic[Read]):
    """An item that is read."""

    number: int
    future: Future[Read] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)


class Prefetch(Generic[Read]):
    """Reads items by several threads, in order, at most `depth` ahead of the consumer.

    It begins with one thread, and starts another one whenever the consumer has waited: of a local disk one or two are
    enough, of object storage as many as its latency asks for. A late item holds up none of those behind it until the
    room is used up; the next thread that has ended its item reads it a second time, and the reading that ends first
    counts. Object storage answers one request in thousands seconds later than the others.

    Args:
        read: returns an item by its number; called twice for a late one.
        depth: most items that are read, or being read, and not consumed yet.
    """

    def __init__(
        self, read: Callable[[int], Read], numbers: Iterator[int], depth: int, most: int = MOST_THREADS
    ) -> None:
        self.read, self.numbers, self.most = read, numbers, most
        self.threads = self.repeated = 0
        self._room, self._lock = threading.Semaphore(max(2, depth)), threading.Lock()
        self._stop = threading.Event()
        self._found: queue.SimpleQueue[Future[Read] | None] = queue.SimpleQueue()
        self._reading: set[Item[Read]] = set()  # once
        self._took: deque[float] = deque(maxlen=64)

    def __iter__(self) -> Iterator[Read]:
        try:
            self._start()
            while (future := self._found.get()) is not None:
                if not wait([future], WAITED).done and self.threads < self.most:
                    self._start()
                item = future.result()
                self._room.release()
                yield item
        finally:
            self._stop.set()

    def _start(self) -> None:
        self.threads += 1
        reader_threads.start(self._work, self._stop, f"prefetch-{self.threads}")

    def _work(self) -> None:
        while not self._stop.is_set():
            item = self._late()
            if item is None:
                if not self._room.acquire(timeout=IDLE):
                    continue
                if (item := self._next()) is None:
                    return
            self._read(item)
        self._found.put(None)  # whoever still waits at the end of the process

    def _next(self) -> Item[Read] | None:
        """The next item, which is read for the first time; None at the end."""
        with self._lock:  # numbers and futures in the same order
            try:
                item: Item[Read] = Item(next(self.numbers))
            except StopIteration:
                self._found.put(None)
                return None
            self._found.put(item.future)
            self._reading.add(item)
            return item

    def _late(self) -> Item[Read] | None:
        """An item whose reading is late, and which isn't read a second time yet."""
        with self._lock:
            if len(self._took) < JUDGED:
                return None
            since = time.monotonic() - max(LEAST_LATE, LATE * statistics.median(self._took))
            late = next((item for item in self._reading if item.began < since), None)
            if late is not None:
                self.repeated += 1
                self._reading.discard(late)
            return late

    def _read(self, item: Item[Read]) -> None:
        found: Read | None = None
        failed: BaseException | None = None
        try:
            found = self.read(item.number)
        except BaseException as error:  # passed to the consumer, which raises it
            failed = error
        with self._lock:
            self._reading.discard(item)
            if item.future.done():
                return
            self._took.append(time.monotonic() - item.began)
            if failed is None:
                item.future.set_result(found)  # type: ignore[arg-type]
            else:
                item.future.set_exception(failed)
