"""React to a node of the training workers that is about to be taken away: checkpoint at once, and leave in time."""

from __future__ import annotations

import time

from raymae.training.interval import Interval

POLL_SECONDS = 2.0
"""Between two polls, which all ranks take part in."""
MARGIN_SECONDS = 8.0
"""Between the last checkpoint and the node's end: for a step, and for Ray to end the workers."""


class Preemption:
    """When to poll for an announcement, and what to do about it."""

    def __init__(self) -> None:
        self.interval = Interval(POLL_SECONDS)
        self._announced = False

    def due(self) -> bool:
        """Whether it is time to poll."""
        return self.interval.is_over()

    def poll(self, end: float | None, commit_seconds: float) -> tuple[bool, bool]:
        """Whether to write a checkpoint now, and whether to stop after it.

        The announcement itself triggers a checkpoint, since nodes may go earlier than announced.

        Args:
            end: Unix time at which the node goes: None while nothing is announced, infinity where it isn't known.
            commit_seconds: how long the last checkpoint stopped the training for.
        """
        self.interval.restart()
        first, self._announced = end is not None and not self._announced, self._announced or end is not None
        last = end is not None and time.time() > end - MARGIN_SECONDS - POLL_SECONDS - 2 * commit_seconds
        return first or last, last
