"""Connect to Ray: the configured cluster, the job's own, or a new one that only this machine can reach.

Ray itself is imported inside `start_ray`: `stay_local` has to be called before that.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymae.config import ComputeConfig

log = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""How long a cluster's address has to answer."""
TELL_SECONDS = 15.0
"""Between two lines that say that Ray is still starting."""


def stay_local(address: str | None = None) -> None:
    """Make all processes of a Ray that this one starts listen on loopback alone.

    Does nothing if a cluster is joined: at `address`, at RAY_ADDRESS, or one that `ray start` started on this machine,
    which other machines have to reach. Ray has the switch for Windows and macOS, where it is the default, and reads it
    when it is imported. A value that is already set is kept.
    """
    if starts_here(address):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def starts_here(address: str | None) -> bool:
    """Whether a new Ray would be started on this machine, rather than a cluster joined."""
    started = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    return address is None and not os.environ.get("RAY_ADDRESS") and not started.exists()


def start_ray(compute: ComputeConfig) -> str | None:
    """Connect to the configured cluster or the job's, or start a local one; says so where that takes long.

    Returns the dashboard's host and port; None without one, or if this process was connected before.

    ConnectionError if the cluster doesn't answer, or Ray doesn't start here in two tries.
    """
    import ray
    import ray.data

    from raymae.cluster.ray_private import PROGRESS_LOGGER

    dashboard = None
    if not ray.is_initialized():
        address = check_address(compute.address)
        with announced(f"Ray of {address}" if address else "Ray"):
            for last in (False, True):
                try:
                    # the workers' output stays in Ray's log files and dashboard: the driver reports progress and events
                    joined = ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR)
                    dashboard = joined.dashboard_url
                    break
                except Exception as error:  # Ray raises various kinds
                    ray.shutdown()
                    if last or address:
                        raise ConnectionError(not_started(address, error)) from None
                    log.warning("Ray doesn't start (%s); trying once more", one_line(error))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger(PROGRESS_LOGGER).setLevel(logging.ERROR)  # else it warns that its bars are off
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return dashboard


class StartingRay:
    """A Ray that is started, or joined, while the caller does something else; what that raises, `wait` raises."""

    def __init__(self, compute: ComputeConfig) -> None:
        self._compute, self._is_over = compute, threading.Event()
        self._error: BaseException | None = None
        # a daemon that doesn't end: Linux ends the processes of a Ray with the thread that started them
        threading.Thread(target=self._start, name="ray", daemon=True).start()

    def wait(self) -> None:
        """Wait until it runs.

        Raises:
            ConnectionError: the cluster doesn't answer, or Ray doesn't start here.
        """
        self._is_over.wait()
        if self._error:
            raise self._error

    def _start(self) -> None:
        try:
            start_ray(self._compute)
        except BaseException as error:  # the main thread's to handle
            self._error = error
        self._is_over.set()
        threading.Event().wait()


def check_address(address: str | None) -> str | None:
    """The cluster's address, with the setting that it is from; None for one that is started here, or found by Ray.

    ConnectionError if nothing answers there: Ray would try for minutes.
    """
    given = address or os.environ.get("RAY_ADDRESS") or ""
    name = "compute.address" if address else "RAY_ADDRESS"
    host, _, port = given.removeprefix("ray://").rpartition(":")
    if not port.isdigit() or "://" in host:  # auto, local, or an address of another kind
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"{name} = {given} doesn't answer ({error}): start the cluster, or "
            + ("leave compute.address out" if address else "unset RAY_ADDRESS")
            + " to start Ray on this machine"
        ) from None
    return f"{name} = {given}"


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Log that something is being started, and now and then that it still is."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(TELL_SECONDS):
            log.info("starting %s for %.0f s; its logs: %s", what, time.monotonic() - began, logs())

    thread = threading.Thread(target=tell, name="starting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def not_started(address: str | None, error: Exception) -> str:
    """The message for a Ray that can't be used."""
    if address:
        return f"the Ray of {address} can't be joined: {one_line(error)}"
    return f"Ray doesn't start on this machine: {one_line(error)}; its logs: {logs()}"


def one_line(error: Exception) -> str:
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def logs() -> Path:
    """The logs of the Ray that was started last on this machine."""
    return Path(tempfile.gettempdir()) / "ray/session_latest/logs"
