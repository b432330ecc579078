"""Look at the processes of the tests' own Ray while they work: where they listen, and what they export."""

from __future__ import annotations

import ipaddress
import os
import threading
import urllib.request
from collections import defaultdict
from contextlib import suppress
from glob import glob
from pathlib import Path

import ray

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.scale.recovery import training_workers

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def listening(pids: set[int]) -> list[Address]:
    """The addresses on which some processes accept TCP connections (Linux)."""
    sockets = set()
    for pid in pids:
        for file in glob(f"/proc/{pid}/fd/*"):
            with suppress(OSError):  # closed meanwhile
                sockets.add(os.readlink(file))
    found: list[Address] = []
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = bytes.fromhex(fields[1].partition(":")[0])
                found.append(ipaddress.ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))))
    return found


def is_loopback(address: Address) -> bool:
    """Whether only this machine reaches an address, which may be an IPv4 address written as IPv6."""
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Watch(threading.Thread):
    """Looks at Ray's processes and at their exported metrics every four seconds, for the duration of the block.

    Attributes:
        listeners: all addresses on which a process listened.
        workers: those of each training worker, by its process id.
        metrics: by run, the last values that the nodes exported for Prometheus, by name.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listeners: set[Address] = set()
        self.workers: dict[int, set[Address]] = defaultdict(set)
        self.metrics: dict[str, dict[str, float]] = defaultdict(dict)
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look until the block ends."""
        while not self._over.wait(4):
            if ray.is_initialized():
                self._look()

    def _look(self) -> None:
        self.listeners.update(listening(set(process_tree(os.getpid()))))
        for pid in training_workers():
            self.workers[pid].update(listening({pid}))
        for node in ray.nodes():
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:
                self._read(answer.read().decode())

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("ray_raymae_") and 'run="' in line:
                run = line.partition('run="')[2].partition('"')[0]
                self.metrics[run][line.partition("{")[0].removeprefix("ray_")] = float(line.rpartition(" ")[2])
