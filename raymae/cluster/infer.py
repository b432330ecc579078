"""Networks over a feature store with Ray Data: what pseudo-labels and evaluation are made from."""

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

from raymae.cluster.errors import plainly
from raymae.cluster.pools import actor_pool, torch_device
from raymae.config import ComputeConfig
from raymae.datasets.rows import Rows
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.inference.embedder import Reading

BATCH = 64

Progress = Callable[[int], Any]

Bar = Callable[[int], AbstractContextManager[Progress]]


class Classify:
    """A Ray Data actor that holds the classifiers."""

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
    """A Ray Data actor that holds frozen encoders."""

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
    """Reads rows of a feature store with networks over the cluster; `bar` opens a progress bar of so many clips."""

    store: FeatureStore
    compute: ComputeConfig
    bar: Bar

    def start(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Start a function on a CPU of the cluster; what comes back waits for its value."""
        value = ray.remote(num_cpus=1)(function).remote(*args)
        return lambda: ray.get(value)

    def classify(
        self, rows: Rows, folders: Mapping[str, Folder], views: int = 0
    ) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Class probabilities (n, C) of some rows by every classifier, each row exactly once, and the mean seconds of
        work of the actors; averaged over `views` as `views.averaged` does."""
        with self.bar(len(rows)) as progress:
            return _over_rows(Classify, self.store, rows, folders, self.compute, progress, views)

    def embed(self, rows: Rows, readings: Mapping[str, Reading]) -> tuple[dict[str, NDArray[np.float32]], float]:
        """Embeddings (n, E) of some rows by every encoder, as `classify`."""
        with self.bar(len(rows)) as progress:
            return _over_rows(Embed, self.store, rows, readings, self.compute, progress)


def _over_rows(
    actor: type[Classify | Embed],
    store: FeatureStore,
    rows: Rows,
    models: Mapping[str, Any],
    compute: ComputeConfig,
    progress: Progress,
    *more: Any,
) -> tuple[dict[str, NDArray[np.float32]], float]:
    batches = [pa.table({"row": rows[start : start + BATCH]}) for start in range(0, len(rows), BATCH)]
    pool, threads = actor_pool(compute, len(batches))
    done = ray.data.from_arrow(batches).map_batches(
        actor,
        batch_size=None,
        fn_constructor_args=(store, models, threads, *more),
        **pool,
    )
    found: dict[str, list[Any]] = {"row": [], "seconds": [], **{name: [] for name in models}}
    for block in plainly(done.iter_batches(batch_size=None)):
        progress(len(block["row"]))
        for name in found:
            found[name].append(block[name])
    places = places_of(rows, np.concatenate(found.pop("row")))
    seconds = float(np.concatenate(found.pop("seconds")).sum()) / pool["compute"].max_size
    return {name: np.concatenate(parts)[places].astype(np.float32) for name, parts in found.items()}, seconds


def places_of(rows: Rows, came: Rows) -> NDArray[np.int64]:
    """Where each of `rows` lies among those that came back; ValueError unless each came exactly once and no other."""
    order = np.argsort(came, kind="stable")
    wanted = np.argsort(rows, kind="stable")
    if not np.array_equal(came[order], rows[wanted]):
        names, counts = np.unique(came, return_counts=True)
        twice, absent = names[counts > 1].tolist(), np.setdiff1d(rows, came).tolist()
        strange = np.setdiff1d(came, rows).tolist()
        said = (("came more than once", twice), ("didn't come", absent), ("were not asked for", strange))
        problems = "; ".join(f"{len(some)} {what} (row {some[0]} of the store)" for what, some in said if some)
        raise ValueError(f"of {len(rows)} clips {len(came)} came back from the workers: {problems}")
    places = np.empty(len(rows), np.int64)
    places[wanted] = order
    return places
