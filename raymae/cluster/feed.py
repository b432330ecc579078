"""What training workers are fed with: the windows of a run as Ray Data sets, to each its own, in their order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data._internal.execution.execution_callback import ExecutionCallback

from raymae.cluster.elastic import alive, reserved_cpus
from raymae.config import AudioConfig
from raymae.features.store import features_of
from raymae.features.streaming import StreamedClips
from raymae.storage.events import latest_step
from raymae.training.batches.windows import Window, read_window
from raymae.training.spec import StageSpec

AHEAD = 3
"""Windows for every reader and training worker that may be finished and not yet taken."""
SHORT = 16
"""Windows for each training worker that one actor reads in the time that another takes to start."""
PAUSE = 0.02
"""Seconds between rounds of Ray Data's scheduler while no finished window waits."""
LONG_PAUSE = 0.1
"""Seconds between them while one does: an H200 takes one in that time, and the worker holds some more. At the pace of
a window in 0.8 s polling takes 2.6 % of a core instead of 6.5 %, and who takes windows at once gets no fewer."""


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
    return range(first, order.windows, max(1, spec.config.compute.feed_windows // order.slots) * order.slots)


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
    left = ray.cluster_resources().get("CPU", 1) - workers * reserved_cpus(compute, workers, alive())
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


class ThrottledPolling(ExecutionCallback):
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
    dataset.context.custom_execution_callback_classes = [ThrottledPolling]
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


def factory(spec: StageSpec, workers: int) -> Callable[[], ray.data.Dataset]:
    """Builds the stage's data set anew at each start of the worker group, from what is committed by then."""
    return lambda: read_leg(spec, next_window(spec), workers)
