"""Memory of a process tree as proportional set size (PSS): a page shared by k processes counts 1 / k in each."""

from __future__ import annotations

import os
import threading
from types import TracebackType


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants (Linux)."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue  # the process has ended
            children.setdefault(parent, []).append(int(name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def pss_mb(pid: int) -> float:
    """Proportional set size of a process in MB; 0 if the process has ended."""
    return _rollup(pid, "Pss:")


def uss_mb() -> float:
    """Unique set size of this process in MB: the pages that it shares with no other."""
    return _rollup(os.getpid(), "Private_Clean:", "Private_Dirty:")


def _rollup(pid: int, *names: str) -> float:
    """The sum of some lines of a process's memory, MB (Linux)."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(names)) * 1024 / 1e6
    except OSError:
        return 0.0


class PeakMemory:
    """Context manager that samples the PSS of this process and all its descendants; `mb` is the largest sum."""

    def __init__(self, interval: float = 0.5) -> None:
        self.mb = 0.0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        self._sample()
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        self.mb = max(self.mb, sum(map(pss_mb, process_tree(os.getpid()))))
