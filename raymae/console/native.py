"""What libraries in C and C++ write to standard error, past Python: into a file, not between a job's lines."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STDERR = 2
WATCH = """
import os, sys, time
name, parent = sys.argv[1], int(sys.argv[2])
while os.getppid() == parent:
    time.sleep(0.3)
if os.path.exists(name):
    with open(name, errors="replace") as file:
        lines = [line.rstrip() for line in file if line.strip()][-3:]
    said = ["error: the process was ended; what libraries wrote last:", *lines, "all of it: " + name]
    print(*said, sep="\\n  ", file=sys.stderr)
"""
"""The program of the process that tells what a library wrote before it ended this process: Ray's core, where its
daemons have gone, ends it without a word to Python."""


@contextmanager
def native_output_kept() -> Iterator[None]:
    """Send what isn't written by Python (by Ray's core, libsndfile, mpg123) to a file while the block runs.

    The file is named on standard error where the block fails, or the process is ended within it; else it is removed.
    Processes that the block starts inherit it. Does nothing where Python's standard error isn't file descriptor 2.
    """
    if not writes_to_stderr():
        yield
        return
    handle, name = tempfile.mkstemp(prefix="raymae-", suffix=".log")
    terminal, traced = os.dup(STDERR), faulthandler.is_enabled()
    watch = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", WATCH, name, str(os.getpid())], stdin=subprocess.DEVNULL, process_group=0
    )
    before, sys.stderr = sys.stderr, os.fdopen(os.dup(STDERR), "w", buffering=1, errors="backslashreplace")
    os.dup2(handle, STDERR)
    os.close(handle)
    faulthandler.enable(sys.stderr)
    ended_well = False
    try:
        yield
        ended_well = True
    except (SystemExit, KeyboardInterrupt) as end:
        ended_well = not (isinstance(end, SystemExit) and end.code)
        raise
    finally:
        faulthandler.disable()
        os.dup2(terminal, STDERR)
        os.close(terminal)
        sys.stderr.close()
        sys.stderr = before
        if traced:
            faulthandler.enable()
        watch.kill()
        watch.wait()
        keep_or_remove(Path(name), ended_well)


def keep_or_remove(file: Path, ended_well: bool) -> None:
    """Remove the file, or name it where there is something in it that may explain a failure."""
    if ended_well or not file.stat().st_size:
        file.unlink()
    else:
        print(f"what libraries wrote: {file}", file=sys.stderr)


def writes_to_stderr() -> bool:
    """Whether Python's standard error is the process's own."""
    try:
        return sys.stderr.fileno() == STDERR
    except (AttributeError, OSError, ValueError):
        return False
