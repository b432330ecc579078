"""Daemon threads that end before the interpreter does. Without torch: data workers import this.

A daemon thread that comes back from C++ while the interpreter ends is unwound through frames that may not throw, and
the process aborts ("terminate called without an active exception", SIGABRT) after all its work is done.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable

PATIENCE = 5.0
"""Seconds for which the end of a process waits for its threads, together: a read may hang for longer."""
_RUNNING: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()


def start(work: Callable[[], None], stop: threading.Event, name: str) -> None:
    """Run `work` in a daemon thread; at the end of the process `stop` is set and the thread waited for.

    Args:
        stop: ends `work` soon after it is set.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    _RUNNING[thread] = stop
    thread.start()


@atexit.register
def _end() -> None:
    running = list(_RUNNING.items())
    for _, stop in running:
        stop.set()
    deadline = time.monotonic() + PATIENCE
    for thread, _ in running:
        thread.join(max(0.0, deadline - time.monotonic()))
