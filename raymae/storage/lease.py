"""Claims on work that several processes could do: one does it, the others wait for its result. No Ray.

A claim is a file in the storage that its owner renews every few seconds. To take one, a process writes its own file and
then lists the others: if one of them is alive, it removes its own and tries again later (as in Dekker's algorithm, but
without turns; the storage need not support exclusive creation). A claim is void if it isn't renewed, or if its owner
was a process of this machine that has ended: a killed trial blocks no other.

Claims only save work. If two processes do the same work (one was taken for dead and continues), the results are equal.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raymae.storage.folder import Folder

RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 45.0
"""Age at which a claim that isn't renewed is void, by the clock of the process that waits for it."""
LOOK_SECONDS = 1.0
"""Interval at which a waiting process looks again."""


class Claim:
    """A process's (or thread's) claim on a piece of work; all claims on it are files in `folder`."""

    def __init__(self, folder: Folder, expire: float = EXPIRE_SECONDS, renew: float = RENEW_SECONDS) -> None:
        self.folder, self.expire, self.renew = folder, expire, renew
        self.name = f"{uuid.uuid4().hex}.json"
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Take the claim; False if another process holds it."""
        if self._others():
            return False
        self._write()
        if self._others():
            self.folder.remove(self.name)
            return False
        self._thread = threading.Thread(target=self._renew, name="claim", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the claim back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.folder.remove(self.name)

    def _write(self) -> None:
        self._count += 1
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "count": self._count}
        self.folder.write_bytes(self.name, json.dumps(owner).encode())

    def _renew(self) -> None:
        while not self._stop.wait(self.renew):
            try:
                self._write()
            except OSError:  # the storage fails temporarily; the next renewal may succeed
                continue

    def _others(self) -> list[str]:
        """The live claims of others; void ones are removed."""
        found = []
        for name in self.folder.names():
            if name == self.name or not name.endswith(".json"):
                continue
            try:
                content = self.folder.read_bytes(name)
            except FileNotFoundError:
                continue
            if self._is_dead(name, content):
                self.folder.remove(name)
            else:
                found.append(name)
        return found

    def _is_dead(self, name: str, content: bytes) -> bool:
        last, since = self._seen.get(name, (b"", 0.0))
        if last != content:
            since = time.monotonic()
            self._seen[name] = content, since
        return is_gone(content) or time.monotonic() - since > self.expire


def is_gone(content: bytes) -> bool:
    """Whether a claim's owner was a process of this machine that has ended."""
    try:
        owner = json.loads(content)
        if owner["host"] != socket.gethostname():
            return False
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):  # unknown: the claim expires by itself
        return False
    return False


@contextmanager
def claimed(
    folder: Folder,
    is_done: Callable[[], bool],
    check: Callable[[], None] = lambda: None,
    expire: float = EXPIRE_SECONDS,
) -> Iterator[bool]:
    """Wait for the claim: yields True while this process holds it, False once another has done the work.

    `check` is called while waiting and may raise.
    """
    claim = Claim(folder, expire)
    while not is_done():
        if claim.take():
            try:
                yield not is_done()
            finally:
                claim.release()
            return
        check()
        time.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
    yield False
