"""Run the stages of a plan one after the other in this process, without Ray.

Ray Train and Ray Data take longer to start than a small stage takes to run, so the trials of a sweep and the runs of a
benchmark use this, several processes side by side. Keys and artifacts are those of the pipeline. The feature store has
to exist. A stage that another process is running is waited for (`raymae.storage.lease`); an interrupted one resumes
from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.cluster.stages import Between
from raymae.config import to_dict
from raymae.config.stages import STAGES
from raymae.datasets.rows import Rows
from raymae.features.store import iterate
from raymae.inference.embedder import Reading
from raymae.inference.test_time_augmentation import classify
from raymae.pipeline.bodies import BODIES
from raymae.pipeline.plan.plan import Node, Plan
from raymae.storage.folder import LEASE, Folder
from raymae.storage.lease import Fence, Lease, leased, suppress_loss
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession

BATCH = 64

OnEvent = Callable[[StageSpec, dict[str, Any]], Any]


class ReportingSession(BareSession):
    """A session in one process that passes every event to a callback."""

    def __init__(self, spec: StageSpec, torch_device: str, on_event: OnEvent) -> None:
        super().__init__(spec.store, spec.artifact, torch_device)
        self.spec, self.on_event = spec, on_event

    def report(self, event: dict[str, Any]) -> None:
        """Write the event and pass it to the callback."""
        super().report(event)
        self.on_event(self.spec, event)


@dataclass(frozen=True)
class InProcess:
    """Runs the stages of a plan in this process; `on_event` gets every event of a training, and ends it by raising."""

    plan: Plan
    torch_device: str = "cpu"
    deadline: Deadline = FOREVER
    on_event: OnEvent = lambda spec, event: None

    def make(self, node: Node) -> bool:
        """Run a stage unless it is finished; returns whether it was run here.

        Raises:
            ValueError: the feature store is missing, and whatever the stages raise about their input.
            TimeIsUpError: the deadline is over; training has written a checkpoint.
        """
        if node.artifact.is_done():
            return False
        if not (STAGES[node.stage].kind or node.stage in BODIES):
            what = "the feature store" if node.stage == "prepare" else node.name
            raise ValueError(f"{what} {node.key} is missing: run jobs/{node.stage}.py first")
        return self._once(node.name, node.artifact, lambda lease: self._make(node, lease))

    def train(self, spec: StageSpec) -> bool:
        """Train what a specification says into its artifact, which is none of the plan's, unless it is finished;
        returns whether it was trained here. Raises as `make`."""
        return self._once(spec.name, spec.artifact, lambda lease: self._train(replace(spec, fence=lease.fence)))

    def _once(self, name: str, artifact: Folder, run: Callable[[Lease], None]) -> bool:
        """Run what makes an artifact, or wait for another process that does."""
        where = f"before {name}"
        while not artifact.is_done():
            with (
                suppress_loss(name),
                leased(artifact / LEASE, artifact.is_done, lambda: self.deadline.check(where)) as lease,
            ):
                if lease:
                    self.deadline.check(where)
                    run(lease)
                    return True
        return False

    def _make(self, node: Node, lease: Lease) -> None:
        if STAGES[node.stage].kind:
            self._train(replace(self.plan.spec(node.name), fence=lease.fence))
        else:
            self.read(node, lease.check)

    def _train(self, spec: StageSpec) -> None:
        if not run_stage(spec, ReportingSession(spec, self.torch_device, self.on_event), self.deadline):
            raise self.deadline.error(f"within {spec.name}")

    def read(self, node: Node, check_lease: Callable[[], None]) -> None:
        """Run a stage that reads classifiers and write its artifact; `check_lease` raises LeaseLostError where another
        process has taken it over."""
        started = time.time()
        result = BODIES[node.stage](self.plan, node, self)
        seconds = time.time() - started
        check_lease()
        node.artifact.write_json("config.json", to_dict(self.plan.config))
        node.artifact.finish(result | {"work_seconds": seconds, "seconds": seconds, "finished_at": time.time()})

    # A `Reader` in this process -----------------------------------------------------------------------------------

    def start(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """A function to be called when its value is asked for."""
        return lambda: function(*args)

    def classify(
        self, rows: Rows, folders: Mapping[str, Folder], views: int = 0
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Class probabilities (n, C) of rows of the store by classifier, and the seconds it took."""
        started, store = time.perf_counter(), self.plan.store
        found = {name: classify(store, rows, folder, views, self.torch_device) for name, folder in folders.items()}
        return found, time.perf_counter() - started

    def embed(self, rows: Rows, readings: Mapping[str, Reading]) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Embeddings (n, E) of rows of the store by encoder, and the seconds it took."""
        started, found = time.perf_counter(), {}
        for name, reading in readings.items():
            embedder = reading.embedder(self.torch_device)
            parts = [
                embedder.clips(log_mel, frames, reading.pool)
                for _, log_mel, frames in iterate(self.plan.store, rows, BATCH)
            ]
            found[name] = np.concatenate(parts)
        return found, time.perf_counter() - started


def between(plan: Plan, node: Node, fence: Fence) -> Between:
    """A stage that reads classifiers, for the worker group that trains the stages before and after it."""
    return Between(name=node.name, artifact=node.artifact, fence=fence, run=partial(_read_there, plan, node, fence))


def _read_there(plan: Plan, node: Node, fence: Fence, torch_device: str) -> None:
    InProcess(plan, torch_device).read(node, fence.check)
