"""A clock that restarts after each event, such as a checkpoint."""

from __future__ import annotations

import time


class Interval:
    """The time since the last of some events that are some seconds apart."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the last restart."""
        return time.monotonic() - self._started

    def is_over(self) -> bool:
        """Whether the interval has passed."""
        return self.elapsed() >= self.seconds
