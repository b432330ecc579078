"""How fast a worker trains: its seconds of work and of waiting for data, and clips per second between two reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from raymae.training.tasks.base import Progress

TALK_SECONDS = 1.0
"""About how often several workers agree on checkpoints."""
MOST_STEPS = 100
"""Steps after which they do at the latest."""


class Pace:
    """Measures a worker's steps. On a GPU a step's work is queued, and its time is seen when a report waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.clock = time.thread_time if device.type == "cpu" else time.perf_counter
        """The clock of `work_seconds`: on CPUs this thread's CPU time, which other processes don't stretch."""
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._per_step = TALK_SECONDS

    @contextmanager
    def step(self, progress: Progress) -> Iterator[Callable[[], None]]:
        """Time a step; call what is yielded when its batches have arrived."""
        started, spent = time.perf_counter(), self.clock()
        waited = idle = 0.0

        def arrived() -> None:
            nonlocal waited, idle
            waited, idle = time.perf_counter() - started, self.clock() - spent

        yield arrived
        seconds = time.perf_counter() - started
        progress.work_seconds += self.clock() - spent - idle
        progress.wait_seconds += waited
        self._steps, self._seconds, self._waited = self._steps + 1, self._seconds + seconds, self._waited + waited
        self._per_step = 0.9 * self._per_step + 0.1 * seconds if self._per_step != TALK_SECONDS else seconds

    @contextmanager
    def reading(self, progress: Progress) -> Iterator[None]:
        """Time the wait for the steps that are queued on the device."""
        started, spent = time.perf_counter(), self.clock()
        yield
        self._seconds += time.perf_counter() - started
        progress.work_seconds += self.clock() - spent

    def metrics(self, batch: int) -> dict[str, float]:
        """Clips per second, of `batch` clips a step, and the share of the time waited for data, since the last call."""
        found = {
            "clips_per_second": batch * self._steps / self._seconds,
            "data_wait_share": self._waited / self._seconds,
        }
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        return found

    def steps_in(self, seconds: float) -> int:
        """Steps until the workers should next agree, within so many seconds."""
        return max(1, min(MOST_STEPS, int(min(TALK_SECONDS, seconds) / max(1e-6, self._per_step))))
