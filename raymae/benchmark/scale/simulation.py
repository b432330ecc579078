"""How long a training worker waits for object storage at rates that this machine can't serve: a simulation."""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from dataclasses import dataclass

from raymae.storage.connections import CONNECTIONS
from raymae.training.batches.prefetch import IDLE, LATE, LEAST_LATE, MOST_THREADS


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What a read takes, as measured."""

    latency: float
    """Seconds until an answer begins."""
    rate: float
    """Bytes per second of a connection."""
    request_bytes: float
    """Mean of a request."""
    requests: float
    """Mean number of a window's requests."""
    cpu_seconds: float
    """Of a request, one after the other: one thread of fsspec handles them all."""
    late_every: int = 0
    """Every so many requests one is late by `late_seconds`; 0: none."""
    late_seconds: float = 2.0
    connections: int = CONNECTIONS


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A training worker: its rounds of windows, all of which it takes at the beginning of each."""

    windows: int
    """Windows of a round."""
    ahead: int
    """Windows that are read ahead."""
    round_seconds: float
    """What the steps of a round take."""


def wait_share(storage: Storage, worker: Worker, rounds: int = 400) -> float:
    """The share of its time for which a worker waits, from its second round on.

    A window's requests begin when there is room for it and a thread; each takes a connection for its latency and its
    bytes, then the processor. A window that is late is read again, as `Prefetch` does.
    """
    free, threads = [0.0] * storage.connections, [0.0] * MOST_THREADS
    asked, processor, now, waited = 0.0, 0.0, 0.0, 0.0
    room: deque[float] = deque([0.0] * worker.ahead)
    took: deque[float] = deque([storage.latency], maxlen=64)
    answered = 0
    for number in range(rounds):
        arrived = now
        for _ in range(worker.windows):
            began = max(room.popleft(), heapq.heappop(threads))
            first = done = began
            asked += storage.requests
            while answered < asked:
                answered += 1
                end = max(began, heapq.heappop(free)) + storage.latency + storage.request_bytes / storage.rate
                processor = max(processor, end) + storage.cpu_seconds
                is_late = storage.late_every and answered % storage.late_every == 0
                heapq.heappush(free, end + storage.late_seconds * bool(is_late))
                first, done = max(first, processor), max(done, processor + storage.late_seconds * bool(is_late))
            usual = statistics.median(took)
            again = began + max(LEAST_LATE, LATE * usual) + IDLE + usual
            heapq.heappush(threads, done)
            done = min(done, max(first, again))
            took.append(done - began)
            arrived = max(arrived, done)
            room.append(arrived)
        waited += arrived - now if number else 0.0
        now = arrived + worker.round_seconds
    return waited / (now - worker.round_seconds)
