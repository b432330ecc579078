"""A node of the training workers that is about to be taken away: commit at once, and leave in time."""

from __future__ import annotations

import time

LOOK_SECONDS = 2.0
"""Between two looks, which all ranks take together."""
MARGIN_SECONDS = 8.0
"""Between the last commit and the node's end: for a step, and for Ray to end the workers."""


class Preemption:
    """When to look for an announcement, and what to do about it."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._told = False

    def due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() - self._looked > LOOK_SECONDS

    def look(self, end: float | None, commit_seconds: float) -> tuple[bool, bool]:
        """Whether to commit now, and whether to stop there.

        `end` is the Unix time at which the node goes: None while nothing is announced, infinity where it isn't known.
        The announcement itself is worth a commit, since nodes may go earlier than they say.
        """
        self._looked = time.monotonic()
        first, self._told = end is not None and not self._told, self._told or end is not None
        last = end is not None and time.time() > end - MARGIN_SECONDS - LOOK_SECONDS - 2 * commit_seconds
        return first or last, last
