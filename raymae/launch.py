"""Training stages on Ray Train: specs to one TorchTrainer, whose workers are fed by Ray Data.

Consecutive stages share a worker group, because starting one takes longer than training a small stage. The only file
that calls `ray.train`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

from raymae.artifacts import Folder, latest_step, write_event
from raymae.config import AudioConfig, ComputeConfig
from raymae.deadline import FOREVER, Deadline
from raymae.gauges import Gauges
from raymae.order import Order
from raymae.spec import StageSpec
from raymae.store import features_of
from raymae.streaming import StreamedClips
from raymae.watchdog import hang_error, hangs, write_failure
from raymae.windows import MicroBatch, Window, micro_batches, read_window
from raymae.workforce import Workforce, reserved_cpus, torch_threads, workforce

log = logging.getLogger(__name__)

AGAIN = (ActorDiedError, WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
"""Not an error of a training worker: Ray Train's controller died, or the group couldn't be started (these two have no
public names)."""
AHEAD = 3
"""Windows for every reader and training worker that may be finished and not yet taken."""
SHORT = 16
"""Windows for each training worker that one actor reads in the time that another takes to start."""
PAUSE = 0.02
"""Seconds between rounds of Ray Data's scheduler while no finished window waits."""
LONG_PAUSE = 0.1
"""Seconds between them while one does: an H200 takes one in that time, and the worker holds some more. At the pace of
a window in 0.8 s polling takes 2.6 % of a core instead of 6.5 %, and who takes windows at once gets no fewer."""


def start_ray(compute: ComputeConfig) -> None:
    """Connect to the configured cluster, the one of the job, or start a local one."""
    if not ray.is_initialized():
        # the workers' own lines stay in Ray's log files and its dashboard: progress and events come through the driver
        ray.init(address=compute.address, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it would warn that its bars are off
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


class WindowReader:
    """A Ray Data actor that turns window numbers into windows, one block each.

    An actor, because Ray ends task workers that are idle for a second and would start, and import, new ones for ever.
    """

    def __init__(self, spec: StageSpec) -> None:
        self.store, self.order = spec.store, spec.order()

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        window = read_window(self.store, self.order, int(batch["window"][0]))
        features = pa.Array.from_buffers(
            pa.binary(window.log_mel[0].nbytes), len(window.log_mel), [None, pa.py_buffer(window.log_mel)]
        )
        return pa.table(
            {"position": window.positions, "row": window.rows, "log_mel": features, "valid_frames": window.valid_frames}
        )


def legs(spec: StageSpec, first: int) -> range:
    """The first windows of the legs that a run from window `first` on is cut into; each a whole number of rounds."""
    order = spec.order()
    return range(first, order.windows, max(1, spec.config.compute.leg_windows // order.slots) * order.slots)


def read_leg(spec: StageSpec, first: int, workers: int) -> ray.data.Dataset:
    """One leg of a stage's run as a Ray Data set of windows in their order: what is planned at once stays bounded."""
    numbers = range(first, min(first + legs(spec, first).step, spec.order().windows))
    readers, cpus = window_readers(spec, workers, len(numbers))
    # not from_arrow: its tasks want a whole CPU each, which there may not be, and read_leg would wait for ever
    leg = ray.data.from_blocks([pa.table({"window": [number]}) for number in numbers]).map_batches(
        WindowReader,
        fn_constructor_args=(spec,),
        batch_size=1,
        num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=readers),
    )
    leg.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=(readers + workers) * AHEAD * window_bytes(spec)
    )
    return leg


def window_bytes(spec: StageSpec) -> int:
    """Size of a full window in memory."""
    audio, order = spec.config.audio, spec.order()
    return order.window_steps * order.micro_batch_size * 2 * audio.n_frames * audio.n_mels


def window_readers(spec: StageSpec, workers: int, windows: int) -> tuple[int, float]:
    """How many actors read some windows for some training workers, and the CPUs reserved for each.

    From a store, two for each worker: while one hands over, the other reads. For a few windows the second isn't worth
    its start. Decoding takes all CPUs that the workers leave.
    """
    compute = spec.config.compute
    left = ray.cluster_resources().get("CPU", 1) - workers * reserved_cpus(compute, workers)
    if not isinstance(spec.store, StreamedClips):
        readers = workers * (2 if windows > SHORT * workers else 1)
    else:
        readers = max(1, min(int(left), compute.data_workers or int(left)))
        if left >= 1:
            return readers, 1
    return readers, 0.25


def next_window(spec: StageSpec) -> int:
    """The window at which a run goes on from its newest commit."""
    order = spec.order()
    return order.first_window(min(latest_step(spec.artifact) or 0, order.steps - 1))


class Unhurried(ExecutionCallback):
    """Lets Ray Data's scheduler rest between its rounds.

    While finished windows wait for the training step, its loop would poll without a pause: half a core, all the time.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called after each round."""
        time.sleep(PAUSE if executor._consumer_idling() else LONG_PAUSE)


class InOrder(ray.train.DataConfig):
    """Window k to rank k mod W, none dropped (Ray Train's own split drops rows to make equal parts)."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """The splits of every dataset by rank."""
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            for rank, split in enumerate(split_in_order(dataset, world_size)):
                output[rank][name] = split
        return output


def split_in_order(dataset: ray.data.Dataset, world_size: int) -> list[ray.data.DataIterator]:
    """Window k to rank k mod W, none dropped."""
    dataset.context.execution_options.preserve_order = True
    dataset.context.custom_execution_callback_classes = [Unhurried]
    return dataset.streaming_split(world_size, equal=False)


def windows_of(split: Any, audio: AudioConfig) -> Iterator[Window]:
    """The windows that arrive at one rank, from its `ray.data.DataIterator`."""
    for block in split.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield Window(
            block["position"].to_numpy(),
            block["row"].to_numpy(),
            features_of(block["log_mel"], audio),
            block["valid_frames"].to_numpy(),
        )


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
        from raymae import parallel

        return parallel.wrap(model, self.torch_device, self.spec.config.compute.parallel)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank."""
        from raymae import parallel

        return parallel.gather(value)

    def taken_at(self) -> float | None:
        """When the first node that is announced to be taken away goes."""
        info = ray.train.get_preemption_info()
        return None if info is None else (info.deadline_ms or float("inf")) / 1000

    def outgrown(self) -> bool:
        """Whether the cluster has room for more workers, as rank 0 sees it."""
        return self.rank == 0 and self.crew.now() > self.world_size

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

    from raymae.stages import run_stage

    torch.set_num_threads(config["torch_threads"])
    for spec in config["specs"]:
        if not spec.artifact.is_done() and not run_stage(spec, RaySession(spec, config["crew"]), config["deadline"]):
            return


def meeting(compute: ComputeConfig, workers: int) -> Any:
    """How the workers find each other. One has nobody to find: a store to meet at would listen on every interface."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class Alone(TorchConfig):
        backend_cls = Backend

    # longer than the watchdog waits, which knows more of a hang than a collective that timed out
    return (Alone if workers == 1 else TorchConfig)(timeout_s=max(1800, round(240 * compute.stall_minutes)))


def train(specs: list[StageSpec], storage: Folder, deadline: Deadline = FOREVER) -> None:
    """Train the stages in one worker group, to the end, the deadline or the error of the last try.

    Another group takes over, from a commit, where nodes were lost for longer than `compute.wait_minutes`, more workers
    have room again, or Ray Train's controller died.
    """
    crew = workforce(specs)
    workers, failures, compute = crew.now(), 0, crew.compute
    while workers:
        left = [spec for spec in specs if not spec.artifact.is_done()]
        try:
            fit(left, storage, deadline, crew, workers)
        except (ray.train.ControllerError, ActorDiedError) as error:
            reason = getattr(error, "controller_failure", error)
            failures += not isinstance(reason, WorkerGroupStartupTimeoutError)
            if failures > compute.max_failures or not isinstance(reason, AGAIN):
                raise
            log.warning("training with %d workers was given up: %s", workers, type(reason).__name__)
        if all(spec.artifact.is_done() for spec in specs) or deadline.is_over():
            return
        before, workers = workers, crew.wait(deadline)
        log.warning("training goes on from the last commit; workers: %d, %d before", workers, before)


def fit(specs: list[StageSpec], storage: Folder, deadline: Deadline, crew: Workforce, workers: int) -> None:
    """Train the stages with so many workers until they stop or the last try fails."""
    from ray.train.torch import TorchTrainer

    compute, artifacts = crew.compute, [spec.artifact for spec in specs]
    known = hangs(artifacts)
    threads = torch_threads(compute, workers)
    # Ray's own limit for lost nodes to come back: after it, those that are there go on
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(60 * compute.wait_minutes)
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"specs": specs, "torch_threads": threads, "deadline": deadline, "crew": crew},
        torch_config=meeting(compute, workers),
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
        raise user_error(error) or hang_error(str(error), hangs(artifacts) - known) or error from None


def user_error(error: ray.train.TrainingFailedError) -> ValueError | None:
    """What a user can mend (a damaged shard, a file that has gone, a full disk), from the text that Ray made of a
    worker's error."""
    texts = map(str, getattr(error, "worker_failures", {}).values())
    found = [line for text in texts for line in re.findall(r"(?m)^.*\b(?:ValueError|StorageFullError): (.+)$", text)]
    return ValueError(found[-1]) if found else None


def factory(spec: StageSpec, workers: int) -> Callable[[], ray.data.Dataset]:
    """Builds the stage's data set anew at each start of the worker group, from what is committed by then."""
    return lambda: read_leg(spec, next_window(spec), workers)
