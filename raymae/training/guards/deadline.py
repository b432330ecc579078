"""The end of a job's time: `--max-hours`, counted from the start of the driver as a queue counts its slot.

Training ends at a commit, other stages at a piece of work that stands; the same command goes on from there. No part of
any key: when a job has to pause changes no result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

EXIT_STATUS = 75
"""Of a job whose time is up and whose command should be given again; EX_TEMPFAIL."""
MARGIN_SECONDS = 60.0
MARGIN_SHARE = 0.02


class TimeIsUpError(Exception):
    """The job's time is over and there is work left."""


@dataclass(frozen=True)
class Deadline:
    """When a job has to stop; picklable, for its workers."""

    max_hours: float | None
    started: float
    """Unix time of the driver's start."""

    @property
    def end(self) -> float:
        """Unix time at which work stops: a minute or 2 % early, the smaller, for the last commit and Ray's end."""
        if self.max_hours is None:
            return float("inf")
        seconds = 3600 * self.max_hours
        return self.started + seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds)

    def is_over(self) -> bool:
        """Whether work has to stop now."""
        return time.time() >= self.end

    def error(self, where: str) -> TimeIsUpError:
        """What to raise where the work stands when the time is over."""
        return TimeIsUpError(f"--max-hours {self.max_hours} are over {where}; the same command goes on from there")

    def check(self, where: str) -> None:
        """Raise `error` once the time is over."""
        if self.is_over():
            raise self.error(where)


FOREVER = Deadline(None, 0.0)
