"""Size pools of Ray actors: how many fit the cluster, with how many CPUs and on which device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import ray.data

from raymae.config import ComputeConfig

if TYPE_CHECKING:
    pass


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
