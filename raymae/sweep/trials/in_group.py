"""Run the stages of a plan with several workers: a trial's process drives Ray Train, and holds no CPU or GPU itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raymae.cluster.elastic import FixedWorkforce
from raymae.cluster.resources.pools import torch_device
from raymae.cluster.train import train_group
from raymae.config.stages import STAGES
from raymae.datasets.rows import Rows
from raymae.pipeline.in_process import InProcess, between
from raymae.pipeline.plan.plan import Node, Plan
from raymae.storage.commits import latest_step
from raymae.storage.events import read_events
from raymae.storage.folder import Folder
from raymae.storage.lease import Lease
from raymae.training.spec import StageSpec

POLL_SECONDS = 1.0
RETRIES = 3
"""How often what reads classifiers is run again if its process or node dies."""


@dataclass(frozen=True)
class InGroup(InProcess):
    """As `InProcess`, but a training has `workers` of Ray Train's, and what reads classifiers the resources of one."""

    workers: int = 1
    cpus: float = 1.0
    """Of each worker."""
    use_gpu: bool = False
    """Whether each has a GPU."""
    label: str = ""
    """Names the trainings in Ray's dashboard."""

    def _make(self, node: Node, lease: Lease) -> None:
        if STAGES[node.stage].kind:
            self._train(replace(self.plan.spec(node.name), fence=lease.fence))
        else:
            self._there(between(self.plan, node, lease.fence).run)

    def _train(self, spec: StageSpec) -> None:
        """Train a stage and pass its events on; returns when it is finished.

        Raises:
            TimeIsUpError: the deadline is over.
            Exception: what `on_event` or the training raises. After the former the workers end with this process.
        """
        workforce = FixedWorkforce(
            spec.config.compute, min(self.workers, spec.slots), self.use_gpu, label=self.label, cpus=self.cpus
        )
        errors: list[BaseException] = []

        def work() -> None:
            try:
                train_group([spec], self.plan.storage, self.deadline, spec.check_lease, workforce)
            except BaseException as error:  # raised again below
                errors.append(error)

        seen, thread = latest_step(spec.artifact) or 0, threading.Thread(target=work, name=spec.name, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            seen = self._pass_on(spec, seen)
        for error in errors:
            raise error
        if not spec.artifact.is_done():
            raise self.deadline.error(f"within {spec.name}")

    def _pass_on(self, spec: StageSpec, seen: int) -> int:
        """Pass on the events after a step; returns the last one's."""
        for event in read_events(spec.artifact, seen):
            self.on_event(spec, event)
            seen = event["step"]
        return seen

    def classify(
        self, rows: Rows, folders: Mapping[str, Folder], views: int = 0
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        """As `InProcess.classify`, where a worker has room."""
        return self._there(partial(classify_there, self.plan, rows, folders, views))  # type: ignore[no-any-return]

    def _there(self, function: Callable[[str], Any]) -> Any:
        """The result of a function of a torch device, run with the resources of one worker."""
        task = ray.remote(
            num_cpus=self.cpus,
            num_gpus=1 if self.use_gpu else 0,
            max_retries=RETRIES,
            scheduling_strategy="DEFAULT",  # not within what Tune reserved for this process
        )(_run)
        return ray.get(task.remote(function))


def _run(function: Callable[[str], Any]) -> Any:
    return function(torch_device())


def classify_there(
    plan: Plan, rows: Rows, folders: Mapping[str, Folder], views: int, device: str
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """As `InProcess.classify`, on the device of the process that runs it."""
    return InProcess(plan, device).classify(rows, folders, views)
