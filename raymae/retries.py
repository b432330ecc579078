"""Storage at a URL fails at times: a read is tried again, a few times, before its failure counts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSES = (0.5, 2.0, 6.0)
"""Seconds before a read is tried again, each with up to half of it more, so that not all workers come back at once."""
LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    NotImplementedError,
)
PASSING_STATUS = (408, 425, 429)
"""HTTP's refusals that are for now."""


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed: not where there is no such file, where it may not be read, or the request is
    wrong."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in PASSING_STATUS
    return not isinstance(error, LASTING)


def patiently(read: Callable[[], T]) -> T:
    """What `read` returns, at once or after one of `PAUSES`; its last error where it fails every time."""
    for pause in PAUSES:
        try:
            return read()
        except Exception as error:  # file systems bring their own
            if not may_pass(error):
                raise
        time.sleep(pause * random.uniform(1, 1.5))
    return read()
