"""Size pools of Ray actors: their number, their CPUs and their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.data

from raymae.cluster.ray_private import autoscaler_report
from raymae.cluster.resources.demand import await_room
from raymae.cluster.resources.gpus import wants_gpu
from raymae.cluster.resources.nodes import alive
from raymae.cluster.resources.room import uses_gpu
from raymae.config import ComputeConfig
from raymae.training.guards.deadline import FOREVER, Deadline


def torch_device() -> str:
    """The device of the actor that calls it."""
    return "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"


def await_actor(compute: ComputeConfig, what: str, deadline: Deadline = FOREVER) -> bool:
    """Wait until a node has room for one of some actors that run a network; whether they have GPUs.

    Raises what `Wait.run` raises, TimeIsUpError if the deadline comes first.
    """
    use_gpu = wants_gpu(compute, fallback=True)
    await_room(what, {"CPU": 1.0} | ({"GPU": 1.0} if use_gpu else {}), compute, deadline)
    return use_gpu


def growing(actors: int, most: int) -> ray.data.ActorPoolStrategy:
    """A pool of so many actors; where an autoscaler adds nodes when actors wait for them, of `most` in the end."""
    return ray.data.ActorPoolStrategy(
        min_size=1, initial_size=actors, max_size=max(actors, most) if autoscaler_report() else actors
    )


def actor_pool(compute: ComputeConfig, tasks: int, deadline: Deadline = FOREVER) -> tuple[dict[str, Any], int]:
    """Arguments of `map_batches` for actors that run a network, one per GPU or else one per node, and their threads.

    Waits until a node has room for one of them (`await_actor`).
    """
    use_gpu, nodes = await_actor(compute, "actors that run a network", deadline), alive()
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if use_gpu else 0
    cores = max(node.get("CPU", 1) for node in nodes)
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=min(tasks, gpus or max(1, len(nodes))))
    return {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "compute": strategy}, compute.torch_threads or int(cores)


def most_actors(compute: ComputeConfig, threads: int, parts: int) -> int:
    """How many actors of so many threads `compute.data_workers` and the parts to compute allow."""
    return max(1, min(parts, compute.data_workers // threads if compute.data_workers else parts))


THREADS = 4
"""CPUs of an actor: more threads would wait for the interpreter's lock, fewer would take more copies of the model."""


def label_pool(compute: ComputeConfig, nodes: Sequence[dict[str, float]], parts: int) -> tuple[dict[str, Any], int]:
    """Arguments of `map_batches` for actors that predict from audio, several on each node, and the threads of each.

    If the cluster has GPUs, only on nodes with GPUs, as many actors per GPU as there are CPUs for.

    Args:
        nodes: resources of each node.
    """
    gpus = sum(node.get("GPU", 0) for node in nodes)
    use_gpu = uses_gpu(compute, gpus)
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and (not use_gpu or node.get("GPU", 0) >= 1)]
    if not nodes:
        raise ValueError(f"the cluster has no node with a CPU{' and a GPU' if use_gpu else ''} to predict on")
    shares = [int(node["CPU"] // node["GPU"]) if use_gpu else int(node["CPU"]) for node in nodes]
    threads = compute.torch_threads or max(1, min(THREADS, max(shares)))
    if compute.data_workers:
        threads = min(threads, compute.data_workers)
    counts = [int(node["CPU"] // threads) for node in nodes]
    actors = sum(counts)
    if not actors:
        raise ValueError(f"compute.torch_threads = {threads} is more than the {max(shares)} CPUs of the largest node")
    per_gpu = max(-(-count // int(node["GPU"])) for count, node in zip(counts, nodes, strict=True)) if use_gpu else 0
    actors = min(actors, most_actors(compute, threads, parts))
    pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=actors, max_size=actors)
    return {"num_cpus": threads, "num_gpus": 1 / max(1, per_gpu) if use_gpu else 0, "compute": pool}, threads
