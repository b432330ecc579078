"""The pipeline's own run, with what Ray would do done in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from raymae.cluster import connect, infer, prepare, train
from raymae.config import ComputeConfig, Config
from raymae.features.manifest import Tally
from raymae.features.store import FeatureStore
from raymae.inference.test_time_augmentation import classify
from raymae.storage.folder import Folder
from raymae.training.run_stage import run_stage
from raymae.training.spec import StageSpec
from raymae.training.worker import BareSession


def featurize(
    numbers: list[int], tally: Tally, artifact: Folder, shards: Folder, config: Config, progress: Callable[[int], Any]
) -> tuple[int, float]:
    """`raymae.cluster.prepare.featurize`."""
    writer = prepare.ShardWriter(shards, config, artifact)
    for number in numbers:
        row = writer({"shard": [number], "name": [tally.plans[number].name]})
        tally.add(number, json.loads(row["summary"][0]))
        progress(row["clips"][0])
    return len(numbers), 0.0


def train_here(specs: list[StageSpec], *args: Any) -> None:
    """`raymae.cluster.train.train`."""
    for spec in specs:
        run_stage(spec, BareSession(spec.store, spec.artifact))


@dataclass(frozen=True)
class Reader:
    """`raymae.cluster.infer.ClusterReader`."""

    store: FeatureStore
    compute: ComputeConfig
    bar: Any
    deadline: Any

    def start(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        return lambda: function(*args)

    def classify(self, rows: Any, folders: Mapping[str, Folder], views: int = 0) -> tuple[dict[str, Any], float]:
        return {name: classify(self.store, rows, folder, views) for name, folder in folders.items()}, 0.0


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages of a plan in this process; without probes of embeddings."""
    monkeypatch.setattr(connect, "start_ray", lambda compute: None)
    monkeypatch.setattr(prepare, "featurize", featurize)
    monkeypatch.setattr(prepare, "await_room", lambda *args: None)
    monkeypatch.setattr(train, "train", train_here)
    monkeypatch.setattr(infer, "ClusterReader", Reader)
