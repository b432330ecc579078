"""How long each thread has waited for a storage, so that a time limit can tell a slow storage from a stuck decoder."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

Found = TypeVar("Found")


class Waits(NamedTuple):
    """What a thread has waited so far; times are monotonic seconds."""

    ended: float = 0.0
    """Seconds of the waits that are over."""
    since: float = math.inf
    """When the one that goes on began, infinity where there is none."""
    asked: float = math.inf
    """When the storage was asked what it hasn't answered yet; to refuse is to answer."""

    def total(self, now: float) -> float:
        """Seconds up to now."""
        return self.ended + max(0.0, now - self.since)

    def silent(self, now: float) -> float:
        """Seconds for which the storage has given nothing."""
        return max(0.0, now - self.asked)


_threads: dict[int, Waits] = {}  # one value each, replaced as a whole: another thread looks at it without a lock


def waits(thread: threading.Thread) -> Waits:
    """What a thread has waited so far."""
    return _threads.get(thread.ident or 0, Waits())


@contextmanager
def waiting() -> Iterator[None]:
    """What the block takes, this thread waits for a storage; blocks within it change nothing."""
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
    """What a storage answers to `call`, within `waiting`."""
    ident = threading.get_ident()
    mine = _threads.get(ident, Waits())
    _threads[ident] = mine._replace(asked=time.monotonic())
    try:
        return call()
    finally:
        _threads[ident] = mine
