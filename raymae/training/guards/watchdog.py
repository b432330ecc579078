"""End a training process that makes no more steps, and keep the stacks of its threads; records of hangs and failures.

A hang is worse than a crash: nothing restarts it, and on a cluster every worker waits for the one that hangs. Ray Train
restarts the process that was ended, and it resumes from the last checkpoint.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType

from raymae.config import redact
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

STACKS, FAILURES = "stacks", "failures"
EXIT_STATUS = 70
"""Exit status of a process that hung; EX_SOFTWARE."""
GRACE_SECONDS = 5.0
"""Between the dump and the end: meanwhile the workers that wait for the one that hangs dump their stacks."""
FIRST_STEP = 3
"""How many times as long the first step may take: it waits for data workers to start and for the compiler."""
LAST_RESORT_SECONDS = 60.0
"""How much later the C watchdog ends the process, if C code keeps the interpreter's lock or the storage hangs too."""


class Watchdog:
    """Ends the process if `beat` isn't called at least every `seconds` while the block runs.

    The first step may take `FIRST_STEP` times as long. The stacks are then written to
    `<artifact>/stacks/rank-<rank>-<step>.txt` and to the log, and the process ends with `EXIT_STATUS`, even while its
    main thread is in C code that released the interpreter's lock. C code that keeps the lock is ended by
    `faulthandler`, which writes the stacks to standard error alone.
    """

    def __init__(self, artifact: Folder, rank: int, seconds: float) -> None:
        self.artifact, self.rank, self.seconds = artifact, rank, seconds
        self._step, self._first = 0, True
        self._last = self._armed = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()

    def begin(self, step: int) -> None:
        """Call before the first step, the one after `step`."""
        self._step, self._last = step, time.monotonic()

    def beat(self, step: int) -> None:
        """Call after each step with its number."""
        self._step, self._last, self._first = step, time.monotonic(), False
        if self._last > self._armed + 1:
            self._arm()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._limit + LAST_RESORT_SECONDS, exit=True, file=2)

    @property
    def _limit(self) -> float:
        return self.seconds * (FIRST_STEP if self._first else 1)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 10)):
            if time.monotonic() - self._last > self._limit:
                self._end()

    def _end(self) -> None:
        try:
            message = f"rank {self.rank} made no step for {self._limit / 60:.3g} minutes after step {self._step}"
            text = f"{message}\n\n{all_stacks()}"
            log.critical("%s", text)
            self.artifact.write_bytes(f"{STACKS}/rank-{self.rank}-{self._step:09d}.txt", text.encode())
            time.sleep(GRACE_SECONDS)
        finally:
            os._exit(EXIT_STATUS)


def all_stacks() -> str:
    """The stack of every thread of this process, most recent call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, 'a non-Python thread')}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def hangs(artifacts: list[Folder]) -> set[str]:
    """A line for every hang whose stacks are in these stages' folders."""
    return {hang(artifact, name) for artifact in artifacts for name in (artifact / STACKS).names()}


def hang(artifact: Folder, name: str) -> str:
    """A line for the hang whose stacks are in the file `name`."""
    rank, step = map(int, re.findall(r"\d+", name))
    return f"rank {rank} hung after step {step}; the stacks of its threads: {redact(artifact.url)}/{STACKS}/{name}"


def write_failure(artifact: Folder, errors: Mapping[int, Exception]) -> None:
    """Record in a stage's folder why its workers failed: by rank, the type of the error and its first line."""
    parts = []
    for rank, error in sorted(errors.items()):
        lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()] or [""]
        parts.append(f"rank {rank}: {type(error).__name__}: {lines[0][:300]}")
    artifact.write_bytes(f"{FAILURES}/{time.time_ns():020d}.txt", "; ".join(parts).encode())


def failures(artifacts: list[Folder]) -> set[str]:
    """A line for every failure of these stages' workers."""
    return {
        f"the workers failed; they are restarted at most compute.max_failures times: "
        f"{(artifact / FAILURES).read_bytes(name).decode()} ({name.removesuffix('.txt')})"
        for artifact in artifacts
        for name in (artifact / FAILURES).names()
    }


def hang_error(failure: str, lines: set[str]) -> TimeoutError | None:
    """The error of a training whose last worker died without an exception, from the new hangs; None without any."""
    return TimeoutError("; ".join(sorted(lines))) if lines and "died" in failure else None
