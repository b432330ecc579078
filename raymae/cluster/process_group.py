"""The process group of the training workers."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

if TYPE_CHECKING:
    from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network interface."""
BACKEND = {False: "gloo", True: "cpu:gloo,cuda:nccl"}
"""With GPUs or without: what the workers agree on goes over gloo, so that nothing waits for the GPU."""
_store: TCPStore | None = None
"""The store of rank 0, in its process; the other ranks connect to it."""


def process_group_config(workers: int, stall_minutes: float, use_gpu: bool = False) -> TorchConfig:
    """Ray Train's configuration of the process group of so many workers; a single worker has none.

    Args:
        stall_minutes: the watchdog's limit. Collectives time out later: the watchdog reports more about a hang.
    """
    seconds = max(1800, round(240 * stall_minutes))
    return NoGroup(timeout_s=seconds) if workers == 1 else Group(BACKEND[use_gpu], timeout_s=seconds)


class NoGroup(TorchConfig):
    """No process group."""

    @property
    def backend_cls(self) -> type[Backend]:
        """A backend that does nothing."""
        return Backend


class Group(TorchConfig):
    """A process group."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that sets it up."""
        return GroupBackend


TORCH_BACKEND: Any = TorchConfig().backend_cls


class GroupBackend(TORCH_BACKEND):  # type: ignore[misc]
    """Ray Train's backend; its workers meet at their nodes' addresses, and if Ray listens on loopback alone, so does
    PyTorch's store.

    By default the store listens on every interface, and whoever can connect to it can take part in the training; and
    gloo listens at the address of the machine's name, which on many machines is on loopback, where no other one
    reaches it.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Called in the controller when the workers have started."""
        worker_group.execute(use_interface)
        if worker_group.execute_single(0, ray.util.get_node_ip_address) != LOOPBACK:
            super().on_start(worker_group, backend_config)
            return
        backend = backend_config.backend
        timeout, count = timedelta(seconds=backend_config.timeout_s), len(worker_group)
        port = worker_group.execute_single(0, open_store, timeout)
        worker_group.execute(set_environment)
        ranks = [
            worker_group.execute_single_async(rank, join, rank, count, backend, port, timeout) for rank in range(count)
        ]
        ray.get(ranks)


def use_interface() -> None:
    """Let this process's collectives use the interface of the node's address, unless the environment names another."""
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where none is found (on Linux alone they can be asked)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def set_environment() -> None:
    """Tell this worker's process its ranks, as torchrun and Ray Train's backend do: libraries read them."""
    from ray.train.torch import get_device

    context = ray.train.get_context()
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "ACCELERATE_TORCH_DEVICE": str(get_device()),
    }


def open_store(timeout: timedelta) -> int:
    """Open the store in this process; returns its port."""
    global _store
    from torch.distributed import TCPStore

    listener = socket.create_server((LOOPBACK, 0), backlog=1024)
    port = int(listener.getsockname()[1])
    _store = TCPStore(LOOPBACK, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listener.detach())
    return port


def join(rank: int, workers: int, backend: str, port: int, timeout: timedelta) -> None:
    """Join the process group."""
    from torch import distributed

    store = _store if rank == 0 else distributed.TCPStore(LOOPBACK, port, None, False, timeout)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers, timeout=timeout)
