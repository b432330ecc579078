"""The end of a job's time: `--max-hours`, counted from the start of the driver as a queue counts its slot.

Training stops at a checkpoint, other stages between pieces of work that are finished; the same command resumes from
there. Not part of any key: pausing changes no result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

EXIT_STATUS = 75
"""Exit status of a job whose time is up and whose command should be run again; EX_TEMPFAIL."""
MARGIN_SECONDS = 60.0
MARGIN_SHARE = 0.02


class TimeIsUpError(Exception):
    """The job's time is up and there is work left."""


@dataclass(frozen=True)
class Deadline:
    """When a job has to stop; picklable, for its workers."""

    max_hours: float | None
    started: float
    """Unix time of the driver's start."""

    @property
    def end(self) -> float:
        """Unix time at which work stops: a minute or 2 % early, the smaller, for the last checkpoint and Ray's exit."""
        if self.max_hours is None:
            return float("inf")
        seconds = 3600 * self.max_hours
        return self.started + seconds - min(MARGIN_SECONDS, MARGIN_SHARE * seconds)

    def is_over(self) -> bool:
        """Whether work has to stop now."""
        return time.time() >= self.end

    def error(self, where: str) -> TimeIsUpError:
        """The error of a job that stops at `where`, such as "before prepare"."""
        return TimeIsUpError(f"--max-hours {self.max_hours} are over {where}; the same command resumes from there")

    def check(self, where: str) -> None:
        """Raise `error` once the time is up."""
        if self.is_over():
            raise self.error(where)


FOREVER = Deadline(None, 0.0)
