"""Batches of the items that many threads submit."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls one function, in a thread of its own, on batches of the items that other threads submit.

    Items that arrive while the function runs form the next batch, of `size` items at most: under load batches are full,
    and without load no item waits for others. Once `waiting` items are queued, `submit` blocks, so that memory is
    bounded. An item whose future is cancelled before its batch starts is left out.

    Args:
        function: returns a result for each item, in order; an exception goes to all items of the batch.
        size: most items in a batch.
        waiting: most items in the queue.
    """

    def __init__(self, function: Callable[[Sequence[Item]], Iterable[Result]], size: int, waiting: int) -> None:
        self.function, self.size = function, size
        self.items: queue.Queue[tuple[Item, Future[Result]] | None] = queue.Queue(waiting)
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self.thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Queue an item; returns the future of its result."""
        future: Future[Result] = Future()
        self.items.put((item, future))
        return future

    def close(self) -> None:
        """End the thread, after the items submitted so far."""
        self.items.put(None)
        self.thread.join()

    def _work(self) -> None:
        while True:
            batch, ended = self._take()
            batch = [one for one in batch if one[1].set_running_or_notify_cancel()]
            if batch:
                self._run(batch)
            if ended:
                return

    def _take(self) -> tuple[list[tuple[Item, Future[Result]]], bool]:
        """The next items, waiting only for the first of them, and whether they are the last."""
        batch: list[tuple[Item, Future[Result]]] = []
        while len(batch) < self.size:
            try:
                one = self.items.get(block=not batch)
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _run(self, batch: list[tuple[Item, Future[Result]]]) -> None:
        try:
            results = self.function([item for item, _ in batch])
        except Exception as error:  # the requests report it; the thread keeps running
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
