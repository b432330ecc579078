"""Keep what libsndfile's MP3 decoder prints off the console: it has no switch for it that could be reached."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_lock = threading.Lock()
_users = 0
_console: int | None = None


@cache
def _streams() -> tuple[ctypes.c_void_p, int] | None:
    """C's variable `stderr`, and a stream to nowhere; None where the C library isn't glibc."""
    try:
        if not os.confstr("CS_GNU_LIBC_VERSION"):
            return None
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(os.devnull.encode(), b"w")
        return (ctypes.c_void_p.in_dll(libc, "stderr"), nowhere) if nowhere else None
    except (AttributeError, OSError, TypeError, ValueError):
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, C code that prints to `stderr` prints nowhere, in all threads of this process.

    Python's own `sys.stderr`, whoever writes to file descriptor 2, and other processes are not affected: the variable
    is changed, no descriptor.
    """
    global _users, _console
    streams = _streams()
    if streams is None:
        yield
        return
    stderr, nowhere = streams
    with _lock:
        if not _users:
            _console, stderr.value = stderr.value, nowhere
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                stderr.value = _console
