"""Connect to Ray: the configured cluster, the job's own, or a new one that only this machine can reach.

Ray itself is imported inside `start_ray`: `stay_local` has to be called before that.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from raymae.config import ComputeConfig


def stay_local(address: str | None = None) -> None:
    """Make all processes of a Ray that this one starts listen on loopback alone.

    Does nothing if a cluster is joined: at `address`, at RAY_ADDRESS, or one that `ray start` started on this machine,
    which other machines have to reach. Ray has the switch for Windows and macOS, where it is the default, and reads it
    when it is imported. A value that is already set is kept.
    """
    started = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if address is None and not os.environ.get("RAY_ADDRESS") and not started.exists():
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def start_ray(compute: ComputeConfig) -> None:
    """Connect to the configured cluster or the job's, or start a local one."""
    import ray
    import ray.data

    if not ray.is_initialized():
        # the workers' output stays in Ray's log files and dashboard: the driver reports progress and events
        ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # else it warns that its bars are off
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
