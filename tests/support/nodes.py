"""A Ray cluster of several real nodes on this machine, each of which can be killed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from raymae.benchmark.harness.memory import process_tree
from raymae.benchmark.scale.recovery import title, training_workers
from tests.support.fake_cloud import HEAD_ID
from tests.support.paths import ROOT

RAY = str(Path(sys.executable).parent / "ray")
PATIENCE = 240
IDLE = (b"ray::IDLE", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
"""Processes of Ray that work for no stage."""


def free_port() -> int:
    """A free port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(condition: Any, what: str, seconds: float = PATIENCE, every: float = 0.1) -> None:
    """Wait until the condition holds, asked `every` so many seconds; TimeoutError after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come")
        time.sleep(every)


def kill_tree(pid: int) -> None:
    """Send SIGKILL to a process and all its descendants."""
    for one in process_tree(pid):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Nodes:
    """A cluster for the duration of the block: a head without CPUs, with dashboard and job server, and other nodes.

    Ray's daemons are real processes, started by `ray start` as on separate machines; with `token` they refuse clients
    without it.
    """

    def __init__(self, folder: Path, cpus: tuple[int, ...] = (2, 2), token: bool = False) -> None:
        self.folder, self.cpus = folder, cpus
        self.host = "127.0.0.1"
        """The head's address."""
        self.port, self.dashboard_port = free_port(), free_port()
        authentication = {"RAY_AUTH_MODE": "disabled"}
        if token:
            (folder / "token").write_text(secrets.token_hex(32))
            authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.environment = {
            **os.environ,
            **authentication,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # not on loopback alone, or no node could join
            "RAY_health_check_period_ms": "500",  # a dead node is noticed after seconds instead of half a minute
            "RAY_health_check_failure_threshold": "6",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # so that jobs run this `python`
            "PYTHONPATH": str(ROOT),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.started = 0

    @property
    def head(self) -> subprocess.Popen[bytes]:
        """The head, which is never killed."""
        return self.processes[0]

    @property
    def nodes(self) -> list[subprocess.Popen[bytes]]:
        """The other nodes, in the order in which they joined."""
        return self.processes[1:]

    @property
    def address(self) -> str:
        """The address that a driver connects to."""
        return f"{self.host}:{self.port}"

    @property
    def job_server(self) -> str:
        """The address that `ray job submit` connects to."""
        return f"http://{self.host}:{self.dashboard_port}"

    def __enter__(self) -> Nodes:
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--dashboard-host={self.host}")
        try:
            self._start("--head", *ports, "--num-cpus=0", "--include-dashboard=true", *self.head_arguments())
            for cpus in self.cpus:
                self.add(cpus)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.processes:
            self._end(self.processes[-1])

    def head_arguments(self) -> list[str]:
        """More of the head's command line."""
        return []

    def place(self) -> list[str]:
        """The command that starts the next node at its place."""
        return [RAY, "start", "--block", "--node-ip-address=127.0.0.1"]

    def add(self, cpus: int = 2) -> subprocess.Popen[bytes]:
        """Add a node; returns when it has joined."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}")

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill all processes of a node."""
        assert node is not self.head
        self._end(node)

    def _end(self, node: subprocess.Popen[bytes]) -> None:
        if node.poll() is None:  # else its number may be another process's by now
            kill_tree(node.pid)
        node.wait()
        self.processes.remove(node)

    def workers(self) -> list[tuple[int, str]]:
        """The processes that work for a job, on any node, with Ray's names for them."""
        found = []
        for pid in (pid for node in self.processes for pid in process_tree(node.pid)):
            words = title(pid).strip(b"\0 ")
            if words.startswith(b"ray::") and not words.startswith(IDLE):
                found.append((pid, words.decode(errors="replace")[5:]))
        return sorted(found)

    def training_workers(self) -> list[int]:
        """The processes that train."""
        return [pid for node in self.processes for pid in training_workers(node.pid)]

    @contextmanager
    def training_halted(self) -> Iterator[None]:
        """Halt the training workers for the block: a fast machine would be done before a node has joined."""
        halted = self.training_workers()
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in halted:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def drain(self, node: subprocess.Popen[bytes], seconds: int) -> None:
        """Announce that a node is taken away in `seconds`, as a cloud does with a spot machine."""
        words = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test's"]
        words += ["--deadline-remaining-seconds", str(seconds), "--node-id", self.node_id(node)]
        subprocess.run(
            [RAY, "drain-node", "--address", self.address, *words], env=self.environment, check=True, timeout=PATIENCE
        )

    def node_id(self, node: subprocess.Popen[bytes]) -> str:
        """Ray's name for a node, from the command line of its raylet."""
        for pid in process_tree(node.pid):
            words = title(pid).split(b"\0")
            found = [word.partition(b"=")[2] for word in words if word.startswith(b"--node_id=")]
            if words[0].endswith(b"raylet") and found:
                return found[0].decode()
        raise LookupError("the node has no raylet")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self.started += 1
        log = self.folder / f"node{self.started}.log"
        command = [*self.place(), "--disable-usage-stats"]
        command.append(f"--dashboard-agent-listen-port={free_port()}")  # jobs are submitted to it
        # one per node, as on separate machines; short, because the names of sockets have a limit
        temporary = f"--temp-dir=/tmp/raymae-{os.getpid()}-{self.started}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, temporary, *arguments], env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.processes.append(process)

        def up() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return b"--block" in log.read_bytes()

        wait_until(up, f"Ray's node (see {log})")
        return process


class Autoscaled(Nodes):
    """A head and Ray's real autoscaler (version 2), which starts nodes of `types` by a `FakeCloud`.

    `ray.cluster_utils.AutoscalingCluster` would do the same, but ends every Ray of the machine at its start and end.
    """

    def __init__(self, folder: Path, types: dict[str, dict[str, float]], most: int = 4) -> None:
        super().__init__(folder, cpus=())
        self.types, self.most = types, most
        self.allow(**dict.fromkeys(types, 0))
        self.environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }

    def allow(self, **counts: int) -> None:
        """Let the cloud have so many nodes of each type; those above are taken away."""
        new = self.folder / "capacity.new"
        new.write_text(json.dumps(counts))
        new.replace(self.folder / "capacity.json")

    def head_arguments(self) -> list[str]:
        """The autoscaler's configuration."""
        provider = {
            "type": "external",
            "module": "tests.support.fake_cloud.FakeCloud",
            "capacity": str(self.folder / "capacity.json"),
            "gcs_address": self.address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        nodes = {
            name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": self.most}
            for name, resources in self.types.items()
        }
        lists = ("initialization_commands", "setup_commands", "rsync_exclude", "rsync_filter", "cluster_synced_files")
        by_role = ("setup_commands", "start_ray_commands")
        config = {
            "cluster_name": "fake",
            "max_workers": self.most * len(self.types),
            "upscaling_speed": 100,
            "idle_timeout_minutes": 0.2,
            "provider": provider,
            "available_node_types": {"ray.head.default": head, **nodes},
            "head_node_type": "ray.head.default",
            "file_mounts_sync_continuously": False,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in lists},
            **{f"{role}_{name}": [] for role in ("head", "worker") for name in by_role},
        }
        path = self.folder / "autoscaling.json"
        path.write_text(json.dumps(config))
        return [f"--autoscaling-config={path}"]
