"""All that raymae uses of Ray and that isn't public: a release of Ray may change it without notice.

Each name says which public one would do instead, or why none does. Classes are imported rather than told by their
names as text: where a release renames one, the import fails, and no promise is lost in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Draining nodes with the times of their ends, and the idle resources of each node; Ray Train asks it, too. Public are
# `ray.nodes` and `ray.util.state.list_nodes`, which don't tell a draining node from another, and
# `ray.available_resources`, which is the sum over the nodes: a worker needs room on a single one.
from ray._private.state import state

# The state that the autoscaler reports, as Ray's own `ray status` reads it. Public is that text, or the dashboard's.
from ray._raylet import GcsClient  # type: ignore[attr-defined]

# The message that holds it.
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

# The base of what Ray Data calls in each round of its scheduler. Public is the list that takes such classes
# (`DataContext.custom_execution_callback_classes`); a class without this base would miss the methods of later releases.
from ray.data._internal.execution.execution_callback import ExecutionCallback

# Why a group of workers couldn't be started. Public is only the error around them, `ray.train.ControllerError`, whose
# `controller_failure` is one of these, or an error of the training's own code, which no new group would mend.
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

__all__ = [
    "PROGRESS_LOGGER",
    "SYSTEM_CONFIG",
    "TEMP_DIR",
    "AutoscalerReport",
    "ExecutionCallback",
    "WorkerGroupStartupFailedError",
    "WorkerGroupStartupTimeoutError",
    "autoscaler_report",
    "begin_to_delete",
    "consumer_waits",
    "propagated_to_trials",
    "state",
]

PROGRESS_LOGGER = "ray.data._internal.progress"
"""The logger that warns when progress bars are off. There is no setting for it, and its parent `ray.data` has warnings
that matter."""

SYSTEM_CONFIG = "_system_config"
"""Option of `ray.init` that sets Ray's own constants, such as `worker_niceness`. Instead: RAY_worker_niceness=0 in the
environment, but then for every later Ray of the process, too."""

TEMP_DIR = "_temp_dir"
"""Option of `ray.init`: the folder of sessions and logs. Instead: RAY_TMPDIR in the environment, as above."""


@dataclass(frozen=True)
class AutoscalerReport:
    """What the autoscaler of a cluster last reported."""

    starting: dict[str, int]
    """How many nodes of which types are being started."""
    failed: dict[str, str]
    """Why a type's last start failed, in the cloud's words."""
    unplaceable: frozenset[str]
    """Identifiers of the placement groups that have no room on the nodes that stand, nor on those that it may start."""


def autoscaler_report() -> AutoscalerReport | None:
    """What the autoscaler last reported; None where the cluster has none (or version 1, which reports nothing).

    Public is `ray status`, a text for people. Of the types of nodes that could be started nothing is known anywhere
    but in the autoscaler's own configuration: what it can't start shows once it is asked for.
    """
    import ray

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    found = reply.autoscaling_state
    if not found.autoscaler_state_version:
        return None
    starting: dict[str, int] = {}
    for request in found.pending_instance_requests:
        starting[request.ray_node_type_name] = starting.get(request.ray_node_type_name, 0) + request.count
    for node in found.pending_instances:
        starting[node.ray_node_type_name] = starting.get(node.ray_node_type_name, 0) + 1
    return AutoscalerReport(
        starting,
        {request.ray_node_type_name: request.reason for request in found.failed_instance_requests},
        frozenset(gang.details.partition(":")[0] for gang in found.infeasible_gang_resource_requests),
    )


def consumer_waits(executor: Any) -> bool:
    """Whether whoever reads a Ray Data set waits for its next block.

    Public are statistics of the whole run only, `Dataset.stats`, and the blocks' own time in `DataIterator.stats`.
    """
    return executor._consumer_idling()  # type: ignore[no-any-return]


def propagated_to_trials() -> set[str]:
    """The environment variables that Ray Tune copies from the driver to its trials, and logs; the set may be changed.

    No setting of Tune takes one out, and the driver needs its own values while it runs.
    """
    from ray.tune.execution import class_cache

    return class_cache.ENV_VARS_TO_PROPAGATE  # type: ignore[no-any-return]


def begin_to_delete(application: str) -> None:
    """Tell Ray Serve to end an application, without waiting for it: public `serve.delete` waits without a limit."""
    from ray import serve

    serve.delete(application, _blocking=False)
