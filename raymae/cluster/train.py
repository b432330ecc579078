"""Training stages on Ray Train: a TorchTrainer for several stages, whose workers read the feature store or, without
one, are fed by Ray Data.

Consecutive stages share a worker group, because starting one takes longer than training a small stage.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
import ray.data
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import ActorDiedError, RayError

from raymae.cluster.elastic import Workforce, by_workers, plan_workforce
from raymae.cluster.errors import user_error
from raymae.cluster.feed import InOrder, dataset_factory, read_segment, segments, split_in_order, windows_of
from raymae.cluster.prometheus import Gauges
from raymae.cluster.ray_private import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from raymae.cluster.stages import Between, trainings
from raymae.config import redact
from raymae.features.streaming import StreamedClips
from raymae.storage.commits import latest_step, resumable
from raymae.storage.events import EventWriter
from raymae.storage.folder import Folder
from raymae.storage.lease import LeaseLostError
from raymae.training.batches.order import Order
from raymae.training.batches.windows import Group, Window, rank_steps, read_groups
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.watchdog import hang_error, hangs, write_failure
from raymae.training.spec import StageSpec

log = logging.getLogger(__name__)

RETRIED = (ActorDiedError, WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
"""Errors that aren't a training worker's: Ray Train's controller died, or the group couldn't be started."""

MAX_DOUBLINGS = 4
"""How often the pause before asking for more workers doubles: up to 16 times `compute.wait_minutes`."""


def is_streamed(spec: StageSpec) -> bool:
    """Whether the stage's clips are decoded anew in every epoch, by Ray Data, rather than read from a store."""
    return isinstance(spec.store, StreamedClips)


class RaySession:
    """The session of a Ray Train worker."""

    def __init__(self, spec: StageSpec, workforce: Workforce) -> None:
        import torch
        from ray.train.torch import get_device

        from raymae.training.guards.gpu import check_device

        context = ray.train.get_context()
        self.spec, self.workforce = spec, workforce
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.torch_device: torch.device = get_device()
        check_device(self.torch_device, workforce.use_gpu, self.world_size)
        self.feeding: Any = None
        if is_streamed(spec):
            from raymae.training import parallel

            self.feeding = parallel.own_group()
        self.events = EventWriter(spec.artifact)
        self.gauges = Gauges(spec.name, spec.artifact.url.rpartition("/")[2])
        if self.rank == 0:
            workforce.ask_for_more(self.world_size)

    def resumes_from(self) -> str | None:
        """The newest checkpoint, by rank 0; where Ray Data feeds the workers, the one whose next step the data begins
        with."""
        if not is_streamed(self.spec):
            return resumable(self.spec.artifact) if self.rank == 0 else None
        return ray.train.get_dataset_shard(self.spec.name).resumes_from  # type: ignore[attr-defined, no-any-return]

    def groups(self, order: Order, step: int) -> Iterator[tuple[int, list[Group]]]:
        """Iterate over this rank's mixing groups of every step, from the store or from Ray Data."""
        if not is_streamed(self.spec):
            return read_groups(self.spec.store, order, self.rank, self.world_size, step)
        windows = self._windows(order.first_window(step))
        return rank_steps(order, windows, self.rank, self.world_size, step)

    def _windows(self, first: int) -> Iterator[Window]:
        """This rank's windows: of the driver's segment, then of those that rank 0 starts, at the same step for all.

        Iterated over by the thread that prepares steps, which talks to the other ranks' in a group of their own.
        """
        from raymae.training import parallel

        split = ray.train.get_dataset_shard(self.spec.name)
        for start in segments(self.spec, first):
            if start > first:
                splits = None
                if self.rank == 0:
                    splits = split_in_order(read_segment(self.spec, start, self.world_size), self.world_size)
                split = parallel.gather(splits, self.feeding)[0][self.rank]
            yield from windows_of(split, self.spec.store.layout)

    def wrap(self, model: Any, precision: Any) -> Any:
        """Wrap the model as `compute` says."""
        from raymae.training import parallel

        compute = self.spec.config.compute
        return parallel.wrap(model, self.torch_device, compute.parallel, precision, compute.fsdp_replicas)

    def gather(self, value: Any) -> list[Any]:
        """All-gather a picklable value."""
        from raymae.training import parallel

        return parallel.gather(value)

    def preemption_time(self) -> float | None:
        """The end of the first node whose preemption is announced; see `Session`."""
        info = ray.train.get_preemption_info()
        return None if info is None else (info.deadline_ms or float("inf")) / 1000

    def can_grow(self) -> bool:
        """Whether the cluster has room for more workers, on rank 0; False on others."""
        return self.rank == 0 and self.workforce.can_grow(self.world_size)

    def report(self, event: dict[str, Any]) -> None:
        """Write an event to the artifact, which the driver follows, in the background, and to Ray's metrics; the last
        also to Ray Train.

        Ray Train's report waits for a controller that polls every 2 s: for every event that would cost too much time.
        """
        if self.rank == 0:
            self.events.write({"time": time.time(), **event})
            self.gauges.show({"step": event["step"], **event["metrics"]})
        if event["last"]:
            self.reported()()
            ray.train.report({"stage": self.spec.name, "step": event["step"], **event["metrics"]})

    def reported(self) -> Callable[[], None]:
        """A function that waits for the events so far."""
        return self.events.so_far()


class Failures(ray.train.UserCallback):
    """Records why a worker group failed, for the driver: only the controller gets the errors."""

    def __init__(self, artifacts: list[Folder], workforce: Workforce) -> None:
        self.artifacts, self.workforce = artifacts, workforce

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the group is restarted or given up. Never raises: that would end the controller."""
        with suppress(RayError):  # the group that restarts may need the room that has come meanwhile
            self.workforce.ask_for_none()
        try:
            stage = next((artifact for artifact in self.artifacts if not artifact.is_done()), self.artifacts[-1])
            write_failure(stage, worker_exceptions)
        except Exception as error:  # each file system has its own
            log.warning("why the workers failed can't be recorded (%s): %s", redact(str(error)), worker_exceptions)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run the stages one after the other, until the deadline."""
    import torch
    from ray.train.torch import get_device

    from raymae.training import parallel
    from raymae.training.run_stage import run_stage

    torch.set_num_threads(config["torch_threads"])
    for spec in config["specs"]:
        if spec.artifact.is_done():
            continue
        try:
            spec.check_lease()
        except LeaseLostError as error:  # not a failure: the driver waits for the other's result
            log.warning("%s: %s", spec.name, error)
            return
        if isinstance(spec, Between):
            if ray.train.get_context().get_world_rank() == 0:
                spec.run(str(get_device()))
            parallel.gather(None)  # the others wait for it
            continue
        if not run_stage(spec, RaySession(spec, config["workforce"]), config["deadline"]):
            return


def train(
    specs: Sequence[StageSpec | Between],
    storage: Folder,
    deadline: Deadline = FOREVER,
    check_leases: Callable[[], None] = lambda: None,
) -> None:
    """Train the stages one after the other, to the end, the deadline or the error of the last attempt. The first one
    trains; what doesn't is run by the first worker of the group of the stage before.

    Consecutive stages that use equally many workers share a group of them.

    `check_leases` raises LeaseLostError when another process has taken over one of the stages.

    The first group starts as `Workforce.start` says. Another one resumes from a checkpoint if nodes are lost for longer
    than `compute.wait_minutes`, if there is room for more workers, or if Ray Train's controller died.
    `compute.max_failures` is a budget for the time without a new checkpoint: each one refills it.
    """
    for some, workforce in by_workers(specs, plan_workforce(trainings(specs))):
        train_group(some, storage, deadline, check_leases, workforce)
        if deadline.is_over():
            return


def train_group(
    specs: Sequence[StageSpec | Between],
    storage: Folder,
    deadline: Deadline,
    check_leases: Callable[[], None],
    workforce: Workforce,
) -> None:
    """Train stages in one group of workers, which resumes as `train` says."""
    limited = workforce
    workers, failures, misses, compute = workforce.start(deadline), 0, 0, workforce.compute
    while workers:
        left, before = [spec for spec in specs if not spec.artifact.is_done()], progress_of(specs)
        try:
            fit(left, storage, deadline, workforce, workers)
            if time.time() >= workforce.grows_from:
                limited, misses = workforce, 0
        except (ray.train.ControllerError, ActorDiedError) as error:
            reason = getattr(error, "controller_failure", error)
            failures = 0 if progress_of(specs) != before else failures
            failures += not isinstance(reason, WorkerGroupStartupTimeoutError)
            if failures > compute.max_failures or not isinstance(reason, RETRIED):
                raise
            log.warning("training with %d workers failed: %s", workers, type(reason).__name__)
            if isinstance(reason, WorkerGroupStartupTimeoutError) and limited.now() == workers:
                # the room is taken, or spread over nodes: ask for what looks idle less and less often
                misses = min(misses + 1, MAX_DOUBLINGS)
                workforce = replace(workforce, grows_from=time.time() + 60 * compute.wait_minutes * 2**misses)
                limited = limited.below(workers + 1 - 2 ** (misses - 1))  # by 1, 2, 4 … fewer: each try takes minutes
        except (ray.train.TrainingFailedError, TimeoutError) as error:  # TimeoutError: of a worker that hung
            if not compute.max_failures or progress_of(specs) == before:
                raise
            log.warning("training failed more than %d times, but not without progress: %s", compute.max_failures, error)
        if all(spec.artifact.is_done() for spec in specs) or deadline.is_over():
            return
        check_leases()
        last, workers = workers, limited.wait(deadline)
        log.warning("training resumes from the last checkpoint; workers: %d, %d before", workers, last)


@contextmanager
def interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, as elsewhere: the handler that Ray Train sets for it, and leaves set, ends
    the workers and then the process, with an exit status of no meaning."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def progress_of(specs: Sequence[StageSpec | Between]) -> list[int | None]:
    """How far the stages are: their newest checkpoints, -1 for a finished one."""
    return [-1 if spec.artifact.is_done() else latest_step(spec.artifact) for spec in specs]


def fit(
    specs: Sequence[StageSpec | Between], storage: Folder, deadline: Deadline, workforce: Workforce, workers: int
) -> None:
    """Train the stages with so many workers until they stop or the last attempt fails."""
    from ray.train.torch import TorchTrainer

    from raymae.cluster.process_group import process_group_config

    compute, artifacts = workforce.compute, [spec.artifact for spec in specs]
    known = hangs(artifacts)
    threads = workforce.threads(workers)
    # Ray's own limit for lost nodes to come back: then the remaining ones continue
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(60 * compute.wait_minutes)
    if workforce.is_alone:  # Ray is this job's alone: its machine isn't taken away with a notice, and its controller
        # is near. Each watcher costs the import of Ray Train, and each poll of the controller up to its interval
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"specs": specs, "torch_threads": threads, "deadline": deadline, "workforce": workforce},
        torch_config=process_group_config(workers, compute.stall_minutes, workforce.use_gpu),
        datasets={spec.name: dataset_factory(spec, workers) for spec in trainings(specs) if is_streamed(spec)},  # type: ignore[misc]
        dataset_config=InOrder(),
        scaling_config=workforce.scaling(workers),
        run_config=ray.train.RunConfig(
            name=f"{specs[0].name}-{workforce.label or specs[0].artifact.url.rpartition('/')[2]}-{time.time_ns():x}",
            storage_path=(storage / "ray").path(),
            # as everything else is stored: pyarrow would find URLs of its own kinds only, with other credentials
            storage_filesystem=None if storage.is_local else PyFileSystem(FSSpecHandler(storage.fs)),
            failure_config=ray.train.FailureConfig(
                max_failures=compute.max_failures,
                controller_failure_limit=0,  # type: ignore[call-arg]
            ),
            callbacks=[Failures(artifacts, workforce)],  # type: ignore[list-item]  # Ray's annotation names Tune's
        ),
    )
    try:
        with interrupts():
            trainer.fit()
    except ray.train.ControllerError:
        raise
    except ray.train.TrainingFailedError as error:
        found = getattr(error, "worker_failures", {}).values()
        failures = (f"{type(one).__name__}: {one}" for one in found)  # as in the text of what Ray Data's workers raise
        raise user_error(failures) or hang_error(str(error), hangs(artifacts) - known) or error from None
    finally:
        workforce.ask_for_none()
