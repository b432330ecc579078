"""How long each thread has waited for a storage, so that time limits can tell a slow storage from a stuck decoder."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

Found = TypeVar("Found")


class Waits(NamedTuple):
    """Waits of a thread for its storage; times are monotonic seconds."""

    ended: float = 0.0
    """Total of the waits that have ended, s."""
    since: float = math.inf
    """Start of the current wait; infinity if there is none."""
    pending_since: float = math.inf
    """Start of the call that the storage hasn't answered yet, infinity if there is none; an error is an answer."""

    def total(self, now: float) -> float:
        """Total waiting time up to `now`, s."""
        return self.ended + max(0.0, now - self.since)

    def silent(self, now: float) -> float:
        """Seconds without an answer from the storage."""
        return max(0.0, now - self.pending_since)


_threads: dict[int, Waits] = {}  # values are replaced as a whole: other threads read them without a lock


def waits(thread: threading.Thread) -> Waits:
    """The waits of a thread so far."""
    return _threads.get(thread.ident or 0, Waits())


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block's time as this thread's waiting for a storage; nested blocks change nothing."""
    ident, began = threading.get_ident(), time.monotonic()
    ended, since, _ = _threads.get(ident, Waits())
    if since != math.inf:
        yield
        return
    _threads[ident] = Waits(ended, began)
    try:
        yield
    finally:
        _threads[ident] = Waits(ended + time.monotonic() - began)


def asking(call: Callable[[], Found]) -> Found:
    """Call a storage, within `waiting`, and record that its answer is pending."""
    ident = threading.get_ident()
    mine = _threads.get(ident, Waits())
    _threads[ident] = mine._replace(pending_since=time.monotonic())
    try:
        return call()
    finally:
        _threads[ident] = mine
