"""Evaluation: every model and rival on every held-out split of the store, each clip exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raymae import report, tagging
from raymae.artifacts import Folder
from raymae.datasets.synthetic import STAMP
from raymae.inference import classify
from raymae.order import Rows
from raymae.plan import Plan
from raymae.rivals import fit_svm, statistics
from raymae.spec import class_names, rows_of
from raymae.store import FeatureStore, iterate
from raymae.targets import Labels, target_matrix

SvmKind = Literal["svm", "svm_robust"]
SVMS: tuple[SvmKind, ...] = ("svm", "svm_robust")


def store_statistics(store: FeatureStore, rows: Rows) -> NDArray[np.float32]:
    """Log-mel statistics (n, 5, F) of some rows."""
    found = [
        statistics(one.astype(np.float32), int(frames), store.audio)
        for _, log_mel, valid_frames in iterate(store, rows, 64)
        for one, frames in zip(log_mel, valid_frames, strict=True)
    ]
    return np.stack(found)


@ray.remote(num_cpus=1)
def svm_rivals(
    store: FeatureStore, kinds: list[SvmKind], train: Rows, test: Rows, names: list[str], labels: Labels, seed: int
) -> dict[SvmKind, tuple[NDArray[np.float32], float]]:
    """Probabilities (n, C) of the held-out rows and training seconds, by rival."""
    targets = target_matrix(store.clips["scene_label"].take(train), names, labels).toarray().astype(np.int64)
    if labels == "single":
        targets = targets.argmax(axis=1)
    x_train, x_test = store_statistics(store, train), store_statistics(store, test)
    found = {}
    for kind in kinds:
        started = time.perf_counter()
        model = fit_svm(kind, x_train, targets, names, seed)
        seconds = time.perf_counter() - started
        found[kind] = (model.probabilities(x_test).astype(np.float32), seconds)
    return found


def evaluate(plan: Plan, bar: Callable[[int], AbstractContextManager[Callable[[int], Any]]]) -> dict[str, Any]:
    """Evaluate all models of a plan and write predictions, report and figures.

    Raises ValueError when no held-out split has a labelled clip.
    """
    store, config = plan.store, plan.config
    artifact = plan.nodes["evaluate"].artifact
    labels = config.finetune.labels
    judge = tagging if labels == "multi" else report
    names = class_names(store.clips, labels)
    held_out = np.concatenate([rows_of(store.clips, split, labelled=True) for split in ("val", "test")])
    if not len(held_out):
        raise ValueError("nothing to evaluate on: no clip of a split val or test… has a scene_label")
    folders = plan.classifiers
    kinds = [kind for kind in SVMS if kind in config.evaluate.rivals]
    train = rows_of(store.clips, "train", labelled=True)
    rivals = svm_rivals.remote(store, kinds, train, held_out, names, labels, config.seed)
    with bar(len(held_out)) as progress:
        probabilities, work_seconds = classify(store, held_out, folders, config.compute, progress)
    seconds = {name: folder.result()["work_seconds"] for name, folder in folders.items()}
    for kind, (found, spent) in ray.get(rivals).items():
        probabilities[kind], seconds[kind] = found, spent
        work_seconds += spent
    order = [name for name in (*SVMS, *folders) if name in probabilities]
    clips = store.clips.take(held_out)
    metrics = {}
    for name in order:
        predictions = predictions_table(clips, probabilities[name])
        artifact.write_table(f"predictions/{name}.parquet", predictions)
        metrics[name] = judge.evaluation(predictions, names)
        if name in SVMS:  # decision values order the classes; they are no probabilities
            for values in metrics[name].values():
                values.update({key: None for key in ("log_loss", "ece") if key in values})
    stamp = STAMP if config.data.dataset == "synthetic" else None
    chosen = [name for name in order if name in folders and chose_by_val(folders[name])]
    text = judge.report_text(metrics, seconds, stamp, chosen)
    artifact.write_bytes("report.md", text.encode())
    judge.figures(metrics, names, artifact)
    return {
        "metrics": metrics,
        "train_seconds": seconds,
        "classes": names,
        "work_seconds": work_seconds,
        "ablation": plan.ablation_models,
    }


def chose_by_val(classifier: Folder) -> bool:
    """Whether split val has chosen a classifier's weights."""
    return bool(classifier.result().get("selection", {}).get("weights") == "best")


def predictions_table(clips: pa.Table, probabilities: NDArray[np.float32]) -> pa.Table:
    """The clip table with a column of class probabilities."""
    return clips.append_column("probabilities", pa.array(list(probabilities), pa.list_(pa.float32())))
