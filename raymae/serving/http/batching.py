"""Items of many threads, worked on together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


class Batcher(Generic[Item, Found]):
    """Calls one function on batches of the items that other threads hand in, in a thread of its own.

    What comes in while the function runs makes the next batch, of `size` items at most: under load batches are full,
    and nobody waits for company where there is none. Once `waiting` items wait, who hands in more waits too, so that
    they take bounded memory. An item whose future was cancelled by then is left out.

    Args:
        function: makes a result of each of some items, in their order; what it raises goes to all of them.
    """

    def __init__(self, function: Callable[[Sequence[Item]], Iterable[Found]], size: int, waiting: int) -> None:
        self.function, self.size = function, size
        self.items: queue.Queue[tuple[Item, Future[Found]] | None] = queue.Queue(waiting)
        self.thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self.thread.start()

    def submit(self, item: Item) -> Future[Found]:
        """The result of an item, some day."""
        future: Future[Found] = Future()
        self.items.put((item, future))
        return future

    def close(self) -> None:
        """End the thread, after what has been handed in."""
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

    def _take(self) -> tuple[list[tuple[Item, Future[Found]]], bool]:
        """The next items, waiting for the first of them alone, and whether they are the last."""
        batch: list[tuple[Item, Future[Found]]] = []
        while len(batch) < self.size:
            try:
                one = self.items.get(block=not batch)
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _run(self, batch: list[tuple[Item, Future[Found]]]) -> None:
        try:
            found = self.function([item for item, _ in batch])
        except Exception as error:  # the requests' to say; the thread goes on
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), value in zip(batch, found, strict=True):
            future.set_result(value)
