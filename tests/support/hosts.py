"""A cluster of three hosts: network namespaces of this machine with addresses and links of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support.nodes import RAY, Nodes


def ip(*words: str) -> None:
    """Run `ip`; CalledProcessError, with what it says, where it fails."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


def why_not() -> str | None:
    """Why namespaces can't be made here; None if they can."""
    name = f"raymae-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "exec", name, "ip", "link", "set", "lo", "up")
        ip("netns", "del", name)
        ip("link", "add", f"rmt{os.getpid()}", "type", "bridge")
        ip("link", "del", f"rmt{os.getpid()}")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {getattr(error, 'stderr', '') or error}".strip()
    return None


class Hosts(Nodes):
    """A head and two nodes, each on a host of its own, for the duration of the block; their links can be cut."""

    def __init__(self, folder: Path, cpus: tuple[int, ...] = (2, 2)) -> None:
        super().__init__(folder, cpus)
        self.network = f"10.77.{os.getpid() % 250}"
        self.host = f"{self.network}.1"
        self.made: list[list[str]] = []
        """Commands that remove what was made, in reverse order."""
        # a link that is cut answers nothing: else a node is given up after minutes
        self.environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "15", "RAY_health_check_timeout_ms": "1000"}

    def __enter__(self) -> Hosts:
        try:
            self._make(["link", "add", self.bridge, "type", "bridge"], ["link", "del", self.bridge])
            ip("addr", "add", f"{self.network}.254/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            for number in range(1, 2 + len(self.cpus)):
                self._make_host(number)
            super().__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._remove()

    @property
    def bridge(self) -> str:
        """The switch between the hosts, by which this process reaches them, too."""
        return f"rmb{os.getpid()}"

    def name(self, number: int) -> str:
        """The name of a host, from 1, the head, on."""
        return f"raymae-{os.getpid()}-{number}"

    def link(self, number: int) -> str:
        """The switch's end of a host's cable."""
        return f"rm{os.getpid()}-{number}"

    def cut(self, number: int) -> None:
        """Pull a host's cable."""
        ip("link", "set", self.link(number), "down")

    def mend(self, number: int) -> None:
        """Put it back."""
        ip("link", "set", self.link(number), "up")

    def place(self) -> list[str]:
        """The command that starts the next node, on the host of its number."""
        number = self.next_host
        return [
            "ip",
            "netns",
            "exec",
            self.name(number),
            RAY,
            "start",
            "--block",
            f"--node-ip-address={self.network}.{number}",
        ]

    next_host = 1
    """The host of the node that is started next."""

    def add(self, cpus: int = 2) -> subprocess.Popen[bytes]:
        """Add a node on the next host, or on `next_host`."""
        self.next_host = min(self.next_host + 1, 1 + len(self.cpus))
        return super().add(cpus)

    def _make_host(self, number: int) -> None:
        name, link = self.name(number), self.link(number)
        self._make(["netns", "add", name], ["netns", "del", name])
        self._make(["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name], ["link", "del", link])
        ip("link", "set", link, "master", self.bridge)
        ip("link", "set", link, "up")
        for words in (
            ("addr", "add", f"{self.network}.{number}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("netns", "exec", name, "ip", *words)

    def _make(self, words: list[str], remove: list[str]) -> None:
        ip(*words)
        self.made.append(remove)

    def _remove(self) -> None:
        while self.made:
            subprocess.run(["ip", *self.made.pop()], check=False, capture_output=True, timeout=30)
