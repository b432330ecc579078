"""The nodes of the cluster that stand now, without those that are about to be taken away."""

from __future__ import annotations

from collections.abc import Container

import ray

from raymae.cluster.ray_private import state


def alive(leaving: Container[str] | None = None) -> list[dict[str, float]]:
    """The resources of each node that is alive now, without those that are about to be taken away."""
    leaving = draining() if leaving is None else leaving
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def idle() -> list[dict[str, float]]:
    """The idle resources of each of these nodes."""
    leaving = draining()
    return [free for node, free in state.available_resources_per_node().items() if node not in leaving]


def staying() -> set[str]:
    """Ray's names for these nodes."""
    leaving = draining()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving}


def draining() -> dict[str, int]:
    """The nodes that are about to be taken away, on which Ray starts nothing more, with the times of their ends."""
    return state.get_draining_nodes()  # type: ignore[no-any-return]
