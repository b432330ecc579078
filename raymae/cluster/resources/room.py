"""Whether some nodes have what `compute` asks for, decided without Ray: before it starts, and by `elastic` later."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from raymae.cluster.connect import starts_here
from raymae.config import ComputeConfig


def uses_gpu(compute: ComputeConfig, gpus: float, fallback: bool = False) -> bool:
    """Whether to use GPUs of a cluster that has so many: by default if there are any, else as `compute.use_gpu` says.

    Args:
        fallback: use CPUs if `compute.use_gpu` is set and there is no GPU, which is a ValueError otherwise.
    """
    if compute.use_gpu and not gpus and not fallback:
        raise ValueError("compute.use_gpu is set and the cluster has no GPU")
    return gpus > 0 and compute.use_gpu is not False


def alone_on_cpus(compute: ComputeConfig) -> bool:
    """Whether a job would start Ray itself, on this machine's CPUs: then there would be one actor for all of them, and
    where there is little to read, this process reads it, because starting both would take longer."""
    import torch

    return starts_here(compute.address) and not uses_gpu(compute, torch.cuda.device_count(), fallback=True)


def workers_of(compute: ComputeConfig, nodes: Sequence[dict[str, float]]) -> tuple[int, bool]:
    """The number of training workers on some nodes, and whether they use GPUs; by default one worker a GPU.

    ValueError if `compute.use_gpu` asks for a GPU that isn't there, or `compute.num_workers` for more than have room.
    """
    use_gpu = uses_gpu(compute, sum(int(node.get("GPU", 0)) for node in nodes))
    kind = "GPU" if use_gpu else "CPU"
    total = sum(node.get(kind, 0) for node in nodes)
    workers = compute.num_workers or (int(total) if use_gpu else 1)
    if not has_room(compute, use_gpu, workers, nodes):
        raise ValueError(
            f"compute.num_workers = {workers} needs more {kind}s than the cluster's {total:g}, or larger nodes "
            f"(compute.cpus_per_worker = {compute.cpus_per_worker:g})"
        )
    return workers, use_gpu


def has_room(compute: ComputeConfig, use_gpu: bool, workers: int, nodes: Sequence[dict[str, float]]) -> bool:
    """Whether some nodes have room for so many workers, each of them on a single node."""
    cpus, found = reserved_cpus(compute, workers, nodes) if use_gpu else compute.cpus_per_worker, 0
    for node in nodes:
        most = int(node.get("CPU", 0) / cpus + 1e-6)
        found += min(most, int(node.get("GPU", 0))) if use_gpu else most
    return found >= workers


def room_for(compute: ComputeConfig, use_gpu: bool, nodes: Sequence[dict[str, float]], most: int) -> int:
    """How many workers some nodes have room for, `most` at most."""
    cpus = compute.cpus_per_worker
    found = (int(node.get("GPU", 0)) if use_gpu else int(node.get("CPU", 0) / cpus + 1e-6) for node in nodes)
    most = min(most, sum(found))
    return next((count for count in range(most, 0, -1) if has_room(compute, use_gpu, count, nodes)), 0)


def reserved_cpus(compute: ComputeConfig, workers: int, nodes: Sequence[dict[str, float]]) -> float:
    """CPUs reserved for each training worker: as configured, but half a CPU a worker is left for its data workers.

    If training reserved all CPUs, no data worker could ever start.
    """
    share = sum(node.get("CPU", 0) for node in nodes) / workers
    return max(0.01, min(compute.cpus_per_worker, share - 0.5))


def check_here(compute: ComputeConfig) -> None:
    """ValueError where Ray is going to start on this machine, without the GPU or the room that is asked for.

    Of a cluster nothing is known before it is joined.
    """
    if joined() or not starts_here(compute.address) or not (compute.use_gpu or compute.num_workers):
        return
    import torch

    machine = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    try:
        workers_of(compute, [machine])
    except ValueError as error:
        raise ValueError(
            f"{error}: Ray would start on this machine, which has {machine['CPU']:g} CPUs and {machine['GPU']:g} GPUs; "
            "join a cluster by --compute.address"
        ) from None


def joined() -> bool:
    """Whether this process uses a Ray already."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
