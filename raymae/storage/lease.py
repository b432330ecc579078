"""Leases: one process does a piece of work that several could do, the others wait for its result. No Ray.

A lease is a folder of numbered files, each made only if no other process has made it (O_EXCL on file systems,
If-None-Match on S3, generation 0 on GCS; `connections.create` says what stores without them do). The newest file names
the holder. The holder renews the lease by making the next file; a process that has seen no new file for
`EXPIRE_SECONDS` makes it in its place. So of all that try exactly one gets the lease, and a holder whose lease was
taken over notices at its next renewal. Clocks of two machines are never compared.

Whoever takes a lease over from a holder that hasn't given it back leaves its own first file for good. So a process that
was paused for hours finds the number after its own taken, however much has happened since.

Whoever stores something that another holder could store, too, calls `Fence.check` before: it raises `LeaseLostError`
once the lease belongs to somebody else.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from raymae.config import redact
from raymae.storage.folder import LEASE, Folder

log = logging.getLogger(__name__)

RENEW_SECONDS = 15.0
EXPIRE_SECONDS = 60.0
"""Time without a renewal after which another process takes a lease over, by that process's clock."""
LOOK_SECONDS = 2.0
"""Interval at which a waiting process looks again."""
SWEEP = 20
"""Renewals after which their files are removed."""


class LeaseLostError(RuntimeError):
    """Another process has taken over what this one was doing."""


@dataclass(frozen=True)
class Fence:
    """What a holder's helpers on other nodes need to know of its lease; picklable."""

    folder: Folder
    token: str

    def check(self) -> None:
        """Raise LeaseLostError if the lease has another holder; two requests."""
        number = newest(self.folder)
        holder = read_holder(self.folder, number) if number else {}
        if holder.get("token") != self.token:
            raise LeaseLostError(f"{redact(self.folder.url)} was taken over by {named(holder)}; this process stops")


class Lease:
    """A process's (or thread's) lease on the work of `folder`.

    Args:
        expire: seconds without a renewal after which the lease of another is taken over; `EXPIRE_SECONDS`.
        renew: seconds between renewals; `RENEW_SECONDS`.
    """

    def __init__(self, folder: Folder, expire: float | None = None, renew: float | None = None) -> None:
        self.folder = folder
        self.expire = EXPIRE_SECONDS if expire is None else expire
        self.renew = RENEW_SECONDS if renew is None else renew
        self.fence = Fence(folder, uuid.uuid4().hex)
        self.lost = False
        self._number = self._first = self._kept = 0
        self._renewed = 0.0
        self._seen = (0, 0.0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Take the lease if nobody holds it; False otherwise."""
        number = newest(self.folder)
        holder = read_holder(self.folder, number) if number else {"released": True}
        if not self._is_free(number, holder) or not self._make(number + 1):
            return False
        if newest(self.folder) != number + 1:  # what was listed was out of date, and the number has been removed since
            self.folder.remove(file_name(number + 1))
            return False
        if read_holder(self.folder, number + 1).get("token") != self.fence.token:
            return False  # a storage without conditional requests let another write over it
        self._first, self._kept = number + 1, number + 1
        if holder.get("released"):
            self._kept = 0
            self.folder.remove(file_name(number))
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return True

    def check(self) -> None:
        """Raise LeaseLostError if the lease was lost, or can't be renewed in time."""
        with self._lock:
            if not self.lost and time.monotonic() - self._renewed > 2 * self.renew:
                self._renew()
            if self.lost or time.monotonic() - self._renewed > self.expire:
                raise LeaseLostError(f"{redact(self.folder.url)} was taken over or couldn't be renewed")

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        before = self._number
        if not self.lost and self._make(before + 1, released=True):
            for number in range(max(self._first, before - SWEEP), before + 1):
                if number != self._kept:
                    self.folder.remove(file_name(number))

    def _is_free(self, number: int, holder: dict[str, Any]) -> bool:
        """Whether the holder of a number has released it, has ended, or hasn't renewed it for long."""
        now = time.monotonic()
        if self._seen[0] != number:
            self._seen = number, now
        return bool(holder.get("released")) or has_ended(holder) or now - self._seen[1] > self.expire

    def _make(self, number: int, released: bool = False) -> bool:
        """Make a file; False if another process has. An answer that got lost makes it ours all the same."""
        holder = {"token": self.fence.token, **this_process(), **({"released": True} if released else {})}
        began, content = time.monotonic(), json.dumps(holder).encode()
        made = self.folder.create(file_name(number), content)
        if not made and read_holder(self.folder, number).get("token") != self.fence.token:
            return False
        self._number, self._renewed = number, began
        return True

    def _keep(self) -> None:
        while not self._stop.wait(self.renew) and not self.lost:
            with self._lock:
                self._renew()

    def _renew(self) -> None:
        try:
            self.lost = not self._make(self._number + 1)
            if self.lost:
                log.warning("the lease %s was taken over by another process", redact(self.folder.url))
            elif (self._number - self._first) % SWEEP == 0:
                self._sweep()
        except Exception as error:  # each file system has its own; the next renewal may succeed
            log.warning("the lease %s can't be renewed (%s)", redact(self.folder.url), redact(str(error)))

    def _sweep(self) -> None:
        """Remove the files between this holder's first and its newest."""
        for number in range(max(self._first + 1, self._number - SWEEP), self._number):
            self.folder.remove(file_name(number))


def file_name(number: int) -> str:
    """Name of the file of a number."""
    return f"{number:09d}.json"


def newest(folder: Folder) -> int:
    """The highest number in a lease's folder, 0 without any."""
    return max((int(name[:9]) for name in folder.names() if name[:9].isdigit()), default=0)


def read_holder(folder: Folder, number: int) -> dict[str, Any]:
    """Who made a file; empty while it is being written or once it has been removed."""
    try:
        found = json.loads(folder.read_bytes(file_name(number)))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def named(holder: dict[str, Any]) -> str:
    """The holder, for messages."""
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


@cache
def _machine() -> tuple[str, str]:
    """What tells apart kernels and, in one kernel, the containers: a host's name is shared by containers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return uuid.uuid4().hex, ""


def started_at(pid: int) -> str | None:
    """When a process of this machine started, in ticks since boot; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, too
    except OSError:
        return None


def this_process() -> dict[str, Any]:
    """What a lease says of its holder."""
    machine, namespace = _machine()
    pid = os.getpid()
    where = {"host": socket.gethostname(), "machine": machine, "namespace": namespace}
    return {**where, "pid": pid, "started": started_at(pid)}


def has_ended(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process that this one could see and that has ended."""
    if (holder.get("machine"), holder.get("namespace")) != _machine() or not isinstance(holder.get("pid"), int):
        return False
    return started_at(holder["pid"]) != holder.get("started")


@contextmanager
def leased(
    folder: Folder,
    is_done: Callable[[], bool],
    check: Callable[[], None] = lambda: None,
) -> Iterator[Lease | None]:
    """Wait for a lease: yields it while this process holds it, or None once another process has done the work.

    `check` is called while waiting and may raise.
    """
    lease, told = Lease(folder), False
    while not is_done():
        if lease.take():
            try:
                yield None if is_done() else lease
            finally:
                lease.release()
            return
        if not told:
            holder = named(read_holder(folder, newest(folder)))
            log.info("waiting for %s, which %s is making", redact(folder.url).removesuffix(f"/{LEASE}"), holder)
            told = True
        check()
        time.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
    yield None


@contextmanager
def suppress_loss(what: str) -> Iterator[None]:
    """Leave the block, with a warning, when the lease of what it makes is lost: its result is waited for instead."""
    try:
        yield
    except LeaseLostError as error:
        log.warning("%s: %s; waiting for its result", what, error)
