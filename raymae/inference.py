"""Classifiers over a feature store with Ray Data: what pseudo-labels and evaluation are made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from raymae.artifacts import Folder
from raymae.config import ComputeConfig
from raymae.order import Rows
from raymae.store import FeatureStore

BATCH = 64


class Classify:
    """A Ray Data actor that holds the classifiers."""

    def __init__(self, store: FeatureStore, folders: dict[str, Folder], threads: int) -> None:
        from raymae.predict import Predictor

        self.store = store
        gpu = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        self.predictors = {
            name: Predictor(folder, torch_device="cuda" if gpu else "cpu", threads=threads)
            for name, folder in folders.items()
        }

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        rows = batch["row"]
        log_mel, valid_frames = self.store.read(rows)
        started = time.perf_counter()
        found = {name: one.probabilities(log_mel, valid_frames) for name, one in self.predictors.items()}
        return {"row": rows, "seconds": np.full(len(rows), (time.perf_counter() - started) / len(rows)), **found}


def actor_pool(compute: ComputeConfig, tasks: int) -> tuple[dict[str, Any], int]:
    """Arguments of `map_batches` for actors that run a network, one per GPU or else one per node, and their threads."""
    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0)) if compute.use_gpu is not False else 0
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = max(node["Resources"].get("CPU", 1) for node in nodes)
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=min(tasks, gpus or max(1, len(nodes))))
    return {"num_cpus": 1, "num_gpus": 1 if gpus else 0, "compute": strategy}, compute.torch_threads or int(cores)


def classify(
    store: FeatureStore,
    rows: Rows,
    folders: dict[str, Folder],
    compute: ComputeConfig,
    progress: Callable[[int], Any],
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """Class probabilities (n, C) of some rows of the store by every classifier, each row exactly once, and the mean
    seconds of work of the actors."""
    batches = [pa.table({"row": rows[start : start + BATCH]}) for start in range(0, len(rows), BATCH)]
    pool, threads = actor_pool(compute, len(batches))
    done = ray.data.from_arrow(batches).map_batches(
        Classify,
        batch_size=None,
        fn_constructor_args=(store, folders, threads),
        **pool,
    )
    found: dict[str, list[Any]] = {"row": [], "seconds": [], **{name: [] for name in folders}}
    for block in done.iter_batches(batch_size=None):
        progress(len(block["row"]))
        for name in found:
            found[name].append(block[name])
    place = np.argsort(np.concatenate(found.pop("row")), kind="stable")
    seconds = float(np.concatenate(found.pop("seconds")).sum()) / pool["compute"].max_size
    if len(place) != len(rows):
        raise RuntimeError(f"{len(place)} of {len(rows)} clips were classified")
    back = np.argsort(np.argsort(rows, kind="stable"), kind="stable")
    return {name: np.concatenate(parts)[place][back].astype(np.float32) for name, parts in found.items()}, seconds
