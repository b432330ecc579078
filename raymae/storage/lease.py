"""Claims on work that several processes could do: one does it, the others wait and find it done. No Ray.

A claim is a file in the storage that its owner renews every few seconds. Whoever wants one writes its own file and then
looks for others: with a living one beside it, it takes its own back and tries again later (Dekker's way, without turns;
no storage needs to create files exclusively). An owner that doesn't renew its file, or whose process is gone from this
machine, is dead, and its claim void: a trial that is killed strands nobody.

Claims save work and decide no result: stages that two owners make at once (one was taken for dead, and wakes) come out
the same.
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
"""Without a renewal; what waits goes by its own clock."""
LOOK_SECONDS = 1.0
"""Between two looks of what waits."""


class Claim:
    """One process's (or thread's) claim on a piece of work, whose claims lie in `folder`."""

    def __init__(self, folder: Folder, expire: float = EXPIRE_SECONDS, renew: float = RENEW_SECONDS) -> None:
        self.folder, self.expire, self.renew = folder, expire, renew
        self.name = f"{uuid.uuid4().hex}.json"
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Take the work, unless somebody has it."""
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
        """Give it back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.folder.remove(self.name)

    def _write(self) -> None:
        self._count += 1
        who = {"host": socket.gethostname(), "pid": os.getpid(), "count": self._count}
        self.folder.write_bytes(self.name, json.dumps(who).encode())

    def _renew(self) -> None:
        while not self._stop.wait(self.renew):
            try:
                self._write()
            except OSError:  # the storage's bad moment; the next turn may do better
                continue

    def _others(self) -> list[str]:
        """The living claims beside this one; void ones are removed."""
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
    """Whether a claim's process was one of this machine and has ended."""
    try:
        who = json.loads(content)
        if who["host"] != socket.gethostname():
            return False
        os.kill(int(who["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):  # not ours to tell: it expires
        return False
    return False


@contextmanager
def claimed(
    folder: Folder,
    is_done: Callable[[], bool],
    check: Callable[[], None] = lambda: None,
    expire: float = EXPIRE_SECONDS,
) -> Iterator[bool]:
    """True while this process has the claim, False once the work is done by another; waits for either.

    `check` is called while it waits, and may raise.
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
