"""A function that ends its process; a process that is spawned for it loads nothing else."""

from __future__ import annotations

import os
import signal
from typing import Any


def kill(*_: Any) -> None:
    """End the process as the system does that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)
