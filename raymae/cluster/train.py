"""Training stages on Ray Train: specs to one TorchTrainer, whose workers are fed by Ray Data.

Consecutive stages share a worker group, because starting one takes longer than training a small stage.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
import ray.data
import ray.train
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from raymae.cluster.elastic import Workforce, torch_threads, workforce
from raymae.cluster.errors import user_error
from raymae.cluster.feed import InOrder, factory, legs, read_leg, split_in_order, windows_of
from raymae.cluster.prometheus import Gauges
from raymae.storage.events import write_event
from raymae.storage.folder import Folder
from raymae.training.batches.order import Order
from raymae.training.batches.windows import MicroBatch, Window, micro_batches
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.watchdog import hang_error, hangs, write_failure
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

AGAIN = (ActorDiedError, WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
"""Not an error of a training worker: Ray Train's controller died, or the group couldn't be started (these two have no
public names)."""

SELDOM = 4
"""How often the pause before more workers are asked for doubles: up to 16 times `compute.wait_minutes`."""


class RaySession:
    """A Ray Train worker's view of the world."""

    def __init__(self, spec: StageSpec, crew: Workforce) -> None:
        import torch
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.spec, self.crew = spec, crew
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.torch_device: torch.device = get_device()
        self.gauges = Gauges(spec.name, spec.artifact.url.rpartition("/")[2])

    def batches(self, order: Order, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches, from Ray Data."""
        windows = self._windows(order.first_window(step))
        return micro_batches(order, windows, self.rank, self.world_size, step)

    def _windows(self, first: int) -> Iterator[Window]:
        """This rank's windows: the leg that the driver began, then those that rank 0 begins, at the same step."""
        split = ray.train.get_dataset_shard(self.spec.name)
        for start in legs(self.spec, first):
            if start > first:
                begun = None
                if self.rank == 0:
                    begun = split_in_order(read_leg(self.spec, start, self.world_size), self.world_size)
                split = self.gather(begun)[0][self.rank]
            yield from windows_of(split, self.spec.config.audio)

    def wrap(self, model: Any) -> Any:
        """The model, as `compute.parallel` says."""
        from raymae.training import parallel

        return parallel.wrap(model, self.torch_device, self.spec.config.compute.parallel)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank."""
        from raymae.training import parallel

        return parallel.gather(value)

    def preemption_time(self) -> float | None:
        """When the first node that is announced to be taken away goes."""
        info = ray.train.get_preemption_info()
        return None if info is None else (info.deadline_ms or float("inf")) / 1000

    def can_grow(self) -> bool:
        """Whether the cluster has room for more workers, as rank 0 sees it."""
        return self.rank == 0 and self.crew.can_grow(self.world_size)

    def report(self, event: dict[str, Any]) -> None:
        """To the artifact's events, which the driver follows, and to Ray's metrics; the stage's last to Ray Train too.

        Its report waits for a controller that looks every 2 s: one for each event would cost more than the training.
        """
        if self.rank == 0:
            write_event(self.spec.artifact, {"time": time.time(), **event})
            self.gauges.show({"step": event["step"], **event["metrics"]})
        if event["last"]:
            ray.train.report({"stage": self.spec.name, "step": event["step"], **event["metrics"]})


class Failures(ray.train.UserCallback):
    """Writes down why a worker group failed, for the driver: it is the controller that learns it."""

    def __init__(self, artifacts: list[Folder]) -> None:
        self.artifacts = artifacts

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the group is started again, or given up."""
        stage = next((artifact for artifact in self.artifacts if not artifact.is_done()), self.artifacts[-1])
        write_failure(stage, worker_exceptions)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run the stages one after the other, until the deadline."""
    import torch

    from raymae.training.run_stage import run_stage

    torch.set_num_threads(config["torch_threads"])
    for spec in config["specs"]:
        if not spec.artifact.is_done() and not run_stage(spec, RaySession(spec, config["crew"]), config["deadline"]):
            return


def train(specs: list[StageSpec], storage: Folder, deadline: Deadline = FOREVER) -> None:
    """Train the stages in one worker group, to the end, the deadline or the error of the last try.

    Another group takes over, from a commit, where nodes were lost for longer than `compute.wait_minutes`, more workers
    have room again, or Ray Train's controller died.
    """
    crew = limited = workforce(specs)
    workers, failures, misses, compute = crew.wait(deadline), 0, 0, crew.compute
    while workers:
        left = [spec for spec in specs if not spec.artifact.is_done()]
        try:
            fit(left, storage, deadline, crew, workers)
            if time.time() >= crew.grows_from:
                limited, misses = crew, 0
        except (ray.train.ControllerError, ActorDiedError) as error:
            reason = getattr(error, "controller_failure", error)
            failures += not isinstance(reason, WorkerGroupStartupTimeoutError)
            if failures > compute.max_failures or not isinstance(reason, AGAIN):
                raise
            log.warning("training with %d workers was given up: %s", workers, type(reason).__name__)
            if isinstance(reason, WorkerGroupStartupTimeoutError) and limited.now() == workers:
                # others have taken the room, or it lies in pieces: what looks idle is asked for ever more seldom
                misses = min(misses + 1, SELDOM)
                crew = replace(crew, grows_from=time.time() + 60 * compute.wait_minutes * 2**misses)
                limited = limited.below(workers)
        if all(spec.artifact.is_done() for spec in specs) or deadline.is_over():
            return
        before, workers = workers, limited.wait(deadline)
        log.warning("training goes on from the last commit; workers: %d, %d before", workers, before)


def fit(specs: list[StageSpec], storage: Folder, deadline: Deadline, crew: Workforce, workers: int) -> None:
    """Train the stages with so many workers until they stop or the last try fails."""
    from ray.train.torch import TorchTrainer

    from raymae.cluster.process_group import meeting

    compute, artifacts = crew.compute, [spec.artifact for spec in specs]
    known = hangs(artifacts)
    threads = torch_threads(compute, workers, crew.use_gpu)
    # Ray's own limit for lost nodes to come back: after it, those that are there go on
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(60 * compute.wait_minutes)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"specs": specs, "torch_threads": threads, "deadline": deadline, "crew": crew},
        torch_config=meeting(workers, compute.stall_minutes),
        datasets={spec.name: factory(spec, workers) for spec in specs},  # type: ignore[arg-type]
        dataset_config=InOrder(),
        scaling_config=crew.scaling(workers),
        run_config=ray.train.RunConfig(
            name=f"{specs[0].name}-{time.time_ns():x}",
            storage_path=(storage / "ray").path() if storage.is_local else (storage / "ray").url,
            failure_config=ray.train.FailureConfig(
                max_failures=compute.max_failures,
                controller_failure_limit=0,  # type: ignore[call-arg]
            ),
            callbacks=[Failures(artifacts)],  # type: ignore[list-item]  # Ray's annotation names Tune's
        ),
    )
    try:
        trainer.fit()
    except ray.train.ControllerError:
        raise
    except ray.train.TrainingFailedError as error:
        failures = map(str, getattr(error, "worker_failures", {}).values())
        raise user_error(failures) or hang_error(str(error), hangs(artifacts) - known) or error from None
