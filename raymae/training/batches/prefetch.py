"""Read items ahead in order, by as many threads as it takes. Without torch: data workers import this."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

Read = TypeVar("Read")

WAITED = 0.01
"""Seconds for which the consumer waits before another thread is started."""
MOST_THREADS = 16


class Prefetch(Generic[Read]):
    """Reads items by several threads, in order, at most `depth` ahead of the consumer.

    It begins with one thread, and starts another one whenever the consumer has waited: of a local disk one or two are
    enough, of object storage as many as its latency asks for. A late item holds up none of those behind it.

    Args:
        read: returns an item by its number.
        depth: most items that are read, or being read, and not consumed yet.
    """

    def __init__(
        self, read: Callable[[int], Read], numbers: Iterator[int], depth: int, most: int = MOST_THREADS
    ) -> None:
        self.read, self.numbers, self.most = read, numbers, most
        self.threads = 0
        self._room, self._lock = threading.Semaphore(max(2, depth)), threading.Lock()
        self._stop = threading.Event()
        self._found: queue.SimpleQueue[Future[Read] | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Read]:
        try:
            self._start()
            while (future := self._found.get()) is not None:
                started = time.monotonic()
                item = future.result()
                if time.monotonic() - started > WAITED and self.threads < self.most:
                    self._start()
                self._room.release()
                yield item
        finally:
            self._stop.set()

    def _start(self) -> None:
        self.threads += 1
        threading.Thread(target=self._work, name=f"prefetch-{self.threads}", daemon=True).start()

    def _work(self) -> None:
        while not self._stop.is_set():
            if not self._room.acquire(timeout=0.2):
                continue
            future: Future[Read] = Future()
            with self._lock:  # numbers and futures in the same order
                try:
                    number = next(self.numbers)
                except StopIteration:
                    self._found.put(None)
                    return
                self._found.put(future)
            try:
                future.set_result(self.read(number))
            except BaseException as error:  # passed to the consumer, which raises it
                future.set_exception(error)
