"""Run classifiers and encoders over a feature store with Ray Data, for pseudo-labels and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from raymae.cluster.errors import unwrap_errors
from raymae.cluster.resources.pools import actor_pool, torch_device
from raymae.config import ComputeConfig
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.training.guards.deadline import FOREVER, Deadline

if TYPE_CHECKING:
    from raymae.inference.embedder import Reading

BATCH = 64

Progress = Callable[[int], Any]

Bar = Callable[[int], AbstractContextManager[Progress]]


class Classify:
    """A Ray Data actor that holds classifiers and returns class probabilities."""

    def __init__(self, store: FeatureStore, folders: Mapping[str, Folder], threads: int, views: int = 0) -> None:
        from raymae.inference.predictor import Predictor

        self.store, self.views = store, views
        self.predictors = {
            name: Predictor(folder, torch_device=torch_device(), threads=threads) for name, folder in folders.items()
        }

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        from raymae.inference.test_time_augmentation import averaged

        rows = batch["row"]
        log_mel, valid_frames = self.store.read(rows)
        started = time.perf_counter()
        clip_ids = self.store.clip_ids.take(rows).to_pylist()
        found = {
            name: averaged(one, log_mel, valid_frames, clip_ids, self.views) for name, one in self.predictors.items()
        }
        return {"row": rows, "seconds": np.full(len(rows), (time.perf_counter() - started) / len(rows)), **found}


class Embed:
    """A Ray Data actor that holds frozen encoders and returns embeddings."""

    def __init__(self, store: FeatureStore, readings: Mapping[str, Reading], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.store = store
        self.embedders = {name: (reading.embedder(torch_device()), reading.pool) for name, reading in readings.items()}

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        rows = batch["row"]
        log_mel, valid_frames = self.store.read(rows)
        started = time.perf_counter()
        found = {name: one.clips(log_mel, valid_frames, pool) for name, (one, pool) in self.embedders.items()}
        return {"row": rows, "seconds": np.full(len(rows), (time.perf_counter() - started) / len(rows)), **found}


@dataclass(frozen=True)
class ClusterReader:
    """Runs networks on rows of a feature store over the cluster; `bar` opens a progress bar of so many clips."""

    store: FeatureStore
    compute: ComputeConfig
    bar: Bar
    deadline: Deadline = FOREVER

    def start(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Start a function on a CPU of the cluster; returns a function that waits for its value."""
        value = ray.remote(num_cpus=1)(function).remote(*args)
        return lambda: ray.get(value)

    def classify(
        self, rows: Rows, folders: Mapping[str, Folder], views: int = 0
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Class probabilities (n, C) of some rows by every classifier, and the actors' mean seconds of computing;
        averaged over `views`, see `test_time_augmentation.averaged`."""
        with self.bar(len(rows)) as progress:
            return _over_rows(Classify, rows, folders, self, progress, views)

    def embed(self, rows: Rows, readings: Mapping[str, Reading]) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Embeddings (n, E) of some rows by every encoder, and the actors' mean seconds of computing."""
        with self.bar(len(rows)) as progress:
            return _over_rows(Embed, rows, readings, self, progress)


def _over_rows(
    actor: type[Classify | Embed],
    rows: Rows,
    models: Mapping[str, Any],
    reader: ClusterReader,
    progress: Progress,
    *more: Any,
) -> tuple[dict[str, NDArray[np.float32]], float]:
    batches = [pa.table({"row": rows[start : start + BATCH]}) for start in range(0, len(rows), BATCH)]
    pool, threads = actor_pool(reader.compute, len(batches), reader.deadline)
    done = ray.data.from_arrow(batches).map_batches(
        actor,
        batch_size=None,
        fn_constructor_args=(reader.store, models, threads, *more),
        **pool,
    )
    found: dict[str, list[Any]] = {"row": [], "seconds": [], **{name: [] for name in models}}
    for block in unwrap_errors(done.iter_batches(batch_size=None)):
        progress(len(block["row"]))
        for name in found:
            found[name].append(block[name])
    places = places_of(rows, np.concatenate(found.pop("row")))
    seconds = float(np.concatenate(found.pop("seconds")).sum()) / pool["compute"].max_size
    return {name: np.concatenate(parts)[places].astype(np.float32) for name, parts in found.items()}, seconds


def places_of(rows: Rows, returned: Rows) -> NDArray[np.int64]:
    """The index of each of `rows` in `returned`; ValueError unless each was returned exactly once and no other."""
    order = np.argsort(returned, kind="stable")
    expected = np.argsort(rows, kind="stable")
    if not np.array_equal(returned[order], rows[expected]):
        names, counts = np.unique(returned, return_counts=True)
        kinds = {
            "more than once": names[counts > 1].tolist(),
            "missing": np.setdiff1d(rows, returned).tolist(),
            "not asked for": np.setdiff1d(returned, rows).tolist(),
        }
        problems = "; ".join(f"{len(some)} {kind} (row {some[0]} of the store)" for kind, some in kinds.items() if some)
        raise ValueError(f"the workers returned {len(returned)} clips of {len(rows)}: {problems}")
    places = np.empty(len(rows), np.int64)
    places[expected] = order
    return places
