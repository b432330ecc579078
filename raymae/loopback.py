"""Who may connect to a Ray of our own: this machine alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def stay_local(address: str | None = None) -> None:
    """Let every process of a Ray that this one starts listen on loopback alone.

    Nothing is changed where it joins another: at `address`, at RAY_ADDRESS, or the one that `ray start` began on this
    machine, whose other machines have to reach it. Ray has the switch for Windows and macOS, where it is the default,
    and looks at it when it is imported. Who sets it himself keeps what he set.
    """
    begun = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if address is None and not os.environ.get("RAY_ADDRESS") and not begun.exists():
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
