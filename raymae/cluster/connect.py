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
    """Let every process of a Ray that this one starts listen on loopback alone.

    Nothing is changed where it joins another: at `address`, at RAY_ADDRESS, or the one that `ray start` began on this
    machine, whose other machines have to reach it. Ray has the switch for Windows and macOS, where it is the default,
    and looks at it when it is imported. Who sets it himself keeps what he set.
    """
    begun = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    if address is None and not os.environ.get("RAY_ADDRESS") and not begun.exists():
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def start_ray(compute: ComputeConfig) -> None:
    """Connect to the configured cluster, the one of the job, or start a local one."""
    import ray
    import ray.data

    if not ray.is_initialized():
        # the workers' own lines stay in Ray's log files and its dashboard: progress and events come through the driver
        ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would warn that its bars are off
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
