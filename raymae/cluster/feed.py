"""Feed training workers from audio files: the windows of a run as Ray Data sets, each worker's own, in order.

Of a feature store every worker reads its own windows (`raymae.training.batches.windows.read_groups`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train

from raymae.cluster.ray_private import ExecutionCallback, consumer_waits
from raymae.cluster.resources.nodes import alive
from raymae.cluster.resources.room import reserved_cpus
from raymae.features.store import Layout
from raymae.storage.commits import resumable, step_of
from raymae.training.batches.order import Order
from raymae.training.batches.windows import Window, rank_slots, read_window
from raymae.training.spec import StageSpec

AHEAD = 3
"""Windows per reader and training worker that may be read ahead."""
FILLER = -1
"""Number of no window: a block for a worker that has fewer windows in a round than others."""
PAUSE = 0.02
"""Seconds between rounds of Ray Data's scheduler while no finished window waits."""
LONG_PAUSE = 0.1
"""Seconds between rounds while one does: an H200 takes a window in that time, and the worker holds some more. At a
window per 0.8 s polling takes 2.6 % of a core instead of 6.5 %; a consumer that takes windows at once gets as many."""


RESUMES = "raymae.resumes_from"
"""In the context of a data set: the checkpoint whose next step it begins with."""


class WindowReader:
    """A Ray Data actor that turns window numbers into windows, one block each.

    An actor, because Ray ends task workers that are idle for a second and would keep starting new ones, with imports.
    """

    def __init__(self, spec: StageSpec) -> None:
        self.store, self.order = spec.store, spec.order()
        self.clip_bytes = spec.store.layout.nbytes

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        number = int(batch["window"][0])
        if number == FILLER:
            size = self.clip_bytes
            filler = pa.array([bytes(size)], pa.binary(size))
            return pa.table({"position": [FILLER], "row": [FILLER], "values": filler, "valid": np.zeros(1, np.int32)})
        window = read_window(self.store, self.order, number)
        values = pa.Array.from_buffers(
            pa.binary(self.clip_bytes), len(window.values), [None, pa.py_buffer(window.values)]
        )
        return pa.table({"position": window.positions, "row": window.rows, "values": values, "valid": window.valid})


def emitted(order: Order, first: int, stop: int, workers: int) -> list[int]:
    """Windows `first` to `stop` (whole rounds) in the order in which Ray Data deals them out, one to each worker in
    turn; `FILLER` for workers that have fewer in a round than others."""
    found: list[int] = []
    for start in range(first, stop, order.slots):
        own = [[start + slot for slot in rank_slots(order.slots, rank, workers)] for rank in range(workers)]
        for turn in range(max(map(len, own))):
            found += [windows[turn] if turn < len(windows) else FILLER for windows in own]
    return found


def segments(spec: StageSpec, first: int) -> range:
    """The first windows of the segments of a run from window `first` on; each segment is a whole number of rounds."""
    order = spec.order()
    return range(first, order.windows, max(1, spec.config.compute.feed_windows // order.slots) * order.slots)


def read_segment(spec: StageSpec, first: int, workers: int) -> ray.data.Dataset:
    """A segment of a stage's run as a Ray Data set of windows in order; segments bound what Ray Data plans at once."""
    order = spec.order()
    numbers = emitted(order, first, min(first + segments(spec, first).step, order.windows), workers)
    readers, cpus = window_readers(spec, workers)
    # not from_arrow: its tasks ask for a whole CPU each, which may not be free, and this would wait for ever
    segment = ray.data.from_blocks([pa.table({"window": [number]}) for number in numbers]).map_batches(
        WindowReader,
        fn_constructor_args=(spec,),
        batch_size=1,
        num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=readers),
    )
    segment.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=(readers + workers) * AHEAD * window_bytes(spec)
    )
    return segment


def window_bytes(spec: StageSpec) -> int:
    """The size of a full window in memory, in bytes."""
    order = spec.order()
    return order.window_steps * order.group_size * spec.store.layout.nbytes


def window_readers(spec: StageSpec, workers: int) -> tuple[int, float]:
    """The number of actors that decode windows for some training workers, and the CPUs reserved for each: all CPUs
    that the workers leave."""
    compute = spec.config.compute
    free = ray.cluster_resources().get("CPU", 1) - workers * reserved_cpus(compute, workers, alive())
    readers = max(1, min(int(free), compute.data_workers or int(free)))
    return readers, 1 if free >= 1 else 0.25


def next_window(spec: StageSpec, commit: str | None) -> int:
    """The window at which a run resumes from a checkpoint."""
    order = spec.order()
    return order.first_window(min(step_of(commit) if commit else 0, order.steps - 1))


class ThrottledPolling(ExecutionCallback):
    """Pauses Ray Data's scheduler between its rounds.

    While finished windows wait for the training step, it would poll without a pause and take half a core all the time.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called after each round."""
        time.sleep(PAUSE if consumer_waits(executor) else LONG_PAUSE)


class InOrder(ray.train.DataConfig):
    """Splits data sets so that block k goes to rank k mod W; Ray Train's own split drops rows to make equal parts."""

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """The splits of every dataset by rank."""
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            for rank, split in enumerate(split_in_order(dataset, world_size)):
                split.resumes_from = dataset.context.get_config(RESUMES)  # type: ignore[attr-defined]
                output[rank][name] = split
        return output


def split_in_order(dataset: ray.data.Dataset, world_size: int) -> list[ray.data.DataIterator]:
    """Split a data set so that block k goes to rank k mod W, without dropping any."""
    dataset.context.execution_options.preserve_order = True
    dataset.context.custom_execution_callback_classes = [ThrottledPolling]
    return dataset.streaming_split(world_size, equal=False)


def windows_of(split: Any, layout: Layout) -> Iterator[Window]:
    """Iterate over the windows of one rank, from its `ray.data.DataIterator`."""
    for block in split.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        if block["position"][0].as_py() == FILLER:
            continue
        yield Window(
            block["position"].to_numpy(),
            block["row"].to_numpy(),
            layout.view(block["values"]),
            block["valid"].to_numpy(),
        )


def dataset_factory(spec: StageSpec, workers: int) -> Callable[[], ray.data.Dataset]:
    """A function that builds the stage's data set at each start of the worker group, from the newest checkpoint on.

    The checkpoint's name travels with the data: the workers resume from it even if a newer one has appeared meanwhile.
    """

    def dataset() -> ray.data.Dataset:
        commit = None if spec.artifact.is_done() else resumable(spec.artifact)
        found = read_segment(spec, next_window(spec, commit), workers)
        found.context.set_config(RESUMES, commit)
        return found

    return dataset
