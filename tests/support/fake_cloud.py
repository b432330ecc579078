"""A cloud of this machine for Ray's autoscaler: its nodes are real ones of Ray's fake provider, as many of each type as
a file allows, so that a test decides when there is room, when there is none, and when nodes are taken away.

Imported by the autoscaler's own process, which finds it by the name in its configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

HEAD_ID = "f" * 51 + "00000"
"""The name that Ray's fake provider gives to the head."""


class FakeCloud(FakeMultiNodeProvider):  # type: ignore[misc]
    """Node types of which there are as many as `provider.capacity`, a JSON file, says at the moment."""

    def capacity(self, node_type: str) -> int:
        """How many nodes of a type there may be now."""
        return int(json.loads(Path(self.provider_config["capacity"]).read_text()).get(node_type, 0))

    def running(self, node_type: str) -> list[str]:
        """The nodes of a type, in the order in which they were started."""
        return [name for name in self._nodes if self.node_tags(name).get(TAG_RAY_USER_NODE_TYPE) == node_type]

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        """Start nodes; NodeLaunchException where the cloud has no more of the type."""
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        if len(self.running(node_type)) + count > self.capacity(node_type):
            raise NodeLaunchException("InsufficientCapacity", f"no more machines of type {node_type}", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> Any:
        """The nodes that there are, after those above the capacity were taken away, the newest first."""
        with self.lock:
            for node_type in {self.node_tags(name).get(TAG_RAY_USER_NODE_TYPE) for name in self._nodes}:
                found = [name for name in self.running(node_type) if "node" in self._nodes[name]]
                for name in found[self.capacity(node_type) :]:
                    self._nodes.pop(name)["node"].kill_all_processes(check_alive=False, allow_graceful=False)
        return super().non_terminated_nodes(tag_filters)
