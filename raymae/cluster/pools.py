"""Size pools of Ray actors: how many fit the cluster, with how many CPUs and on which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.data

from raymae.config import ComputeConfig


def torch_device() -> str:
    """The device of the actor that asks."""
    return "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"


def actor_pool(compute: ComputeConfig, tasks: int) -> tuple[dict[str, Any], int]:
    """Arguments of `map_batches` for actors that run a network, one per GPU or else one per node, and their threads."""
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0)) if compute.use_gpu is not False else 0
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = max(node["Resources"].get("CPU", 1) for node in nodes)
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=min(tasks, gpus or max(1, len(nodes))))
    return {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "compute": strategy}, compute.torch_threads or int(cores)


THREADS = 4
"""CPUs of an actor: more threads would wait for each other's turn at the interpreter, fewer hold the model oftener."""


def label_pool(compute: ComputeConfig, nodes: Sequence[dict[str, float]], parts: int) -> tuple[dict[str, Any], int]:
    """Arguments of `map_batches` for actors that label, several on each node, and the threads of each.

    On GPUs where the cluster has them: then on the nodes with GPUs alone, as many actors to each as there are CPUs for.

    Args:
        nodes: resources of each node.
    """
    gpus = sum(node.get("GPU", 0) for node in nodes)
    use_gpu = gpus > 0 if compute.use_gpu is None else compute.use_gpu
    if use_gpu and not gpus:
        raise ValueError("compute.use_gpu is set and the cluster has no GPU")
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and (not use_gpu or node.get("GPU", 0) >= 1)]
    if not nodes:
        raise ValueError(f"the cluster has no node with a CPU{' and a GPU' if use_gpu else ''} to label files on")
    shares = [int(node["CPU"] // node["GPU"]) if use_gpu else int(node["CPU"]) for node in nodes]
    threads = compute.torch_threads or max(1, min(THREADS, max(shares)))
    if compute.data_workers:
        threads = min(threads, compute.data_workers)
    counts = [int(node["CPU"] // threads) for node in nodes]
    actors = sum(counts)
    if not actors:
        raise ValueError(f"compute.torch_threads = {threads} is more than the {max(shares)} CPUs of the largest node")
    if compute.data_workers:
        actors = min(actors, compute.data_workers // threads)
    beside = max(-(-count // int(node["GPU"])) for count, node in zip(counts, nodes, strict=True)) if use_gpu else 0
    actors = max(1, min(actors, parts))
    pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=actors, max_size=actors)
    return {"num_cpus": threads, "num_gpus": 1 / max(1, beside) if use_gpu else 0, "compute": pool}, threads
