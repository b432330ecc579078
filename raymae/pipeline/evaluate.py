"""Evaluate every model and baseline on every held-out split of the store, each clip exactly once. Works without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config import to_dict
from raymae.config.stages import STAGES, turn_of
from raymae.datasets.labels import Labels, target_matrix
from raymae.datasets.rows import Rows, class_names, held_out, rows_of
from raymae.datasets.splits.split_file import split_name
from raymae.datasets.synthetic import STAMP
from raymae.evaluation.baselines import SVMS, SvmKind, fit_svm, statistics
from raymae.evaluation.recordings import by_recording, has_parts
from raymae.evaluation.report import write_report
from raymae.evaluation.report.mistakes import read_samples
from raymae.evaluation.scores import (
    KINDS,
    check_complete,
    comparisons,
    corrected,
    evaluation,
    mistakes,
    training_domains,
)
from raymae.evaluation.verdict import verdict
from raymae.features.manifest import silent_clips
from raymae.features.store import FeatureStore, iterate
from raymae.inference.embedder import Reading
from raymae.pipeline.plan.plan import Plan
from raymae.pipeline.reports.report_facts import made, training_figures
from raymae.storage.folder import Folder
from raymae.training.batches.order import sample

PROBABILITY_SCORES = ("log_loss", "log_loss_ci", "ece", "ece_ci", "reliability")
"""Scores that need probabilities, which the SVMs don't give."""

Found = tuple[Mapping[str, NDArray[np.float32]], float]
"""Arrays with a row per clip, by name, and the seconds of work that they took."""


class Reader(Protocol):
    """Inference on rows of the store: on a cluster (`cluster.infer`) or in one process (`pipeline.in_process`)."""

    def start(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Start a computation in the background; the returned function waits for its result and returns it."""
        ...

    def classify(self, rows: Rows, folders: Mapping[str, Folder], views: int = 0) -> Found:
        """Class probabilities (n, C) of rows by every classifier, averaged over so many views with random EQ."""
        ...

    def embed(self, rows: Rows, readings: Mapping[str, Reading]) -> Found:
        """Embeddings (n, E) of rows by every encoder."""
        ...


def store_statistics(store: FeatureStore, rows: Rows) -> NDArray[np.float32]:
    """Log-mel statistics (n, 5, F) of rows of the store."""
    found = [
        statistics(one.astype(np.float32), int(frames), store.audio)
        for _, log_mel, valid_frames in iterate(store, rows, 64)
        for one, frames in zip(log_mel, valid_frames, strict=True)
    ]
    return np.stack(found)


def svm_baselines(
    store: FeatureStore, kinds: list[SvmKind], train: Rows, test: Rows, names: list[str], labels: Labels, seed: int
) -> dict[SvmKind, tuple[NDArray[np.float32], float]]:
    """Probabilities (n, C) of the `test` rows and training seconds, by baseline; `train` are the labelled rows."""
    targets = target_matrix(store.clips["scene_label"].take(train), names, labels).toarray().astype(np.int64)
    if labels == "single":
        targets = targets.argmax(axis=1)
    x_train, x_test = store_statistics(store, train), store_statistics(store, test)
    unlabelled = rows_of(store.clips, "train", labelled=False)
    self_training = "svm_self_trained" in kinds and len(unlabelled)
    x_unlabelled = store_statistics(store, unlabelled) if self_training else None
    found = {}
    for kind in kinds:
        started = time.perf_counter()
        model = fit_svm(kind, x_train, targets, names, seed, x_unlabelled)
        seconds = time.perf_counter() - started
        found[kind] = (model.probabilities(x_test).astype(np.float32), seconds)
    return found


def evaluate(plan: Plan, reader: Reader) -> dict[str, Any]:
    """Evaluate all models of a plan and write predictions, pages and figures.

    Returns the content of `report.json`, and work_seconds:
        verdict: the fields of `verdict.Verdict`; made: see `report_facts.made`.
        split: the name of the split; labels: single or multi; classes; note: `STAMP` for synthetic data, else None.
        metrics: model → split → scores (`scores.evaluation`); train_seconds: by model; val_chose: models whose weights
            were selected on split val; trained_on: devices and cities of train and pool; quarantined, silent: by split,
            number of labelled clips that couldn't be read, and that hold no sound.
        comparisons: other model → split → the final model (first) against it (`scores.comparisons`), with p_holm.
        mistakes: of the final model, by split (`scores.mistakes`).
        embeddings: accuracies of probes by stage (`probes.read_out`), or None.
        ablation: the model of each ablation (`Plan.ablation_models`).
        artifacts: of every network, its classifier's folder within the storage.
        clips: model → split → number and headline score of the clips that long recordings were cut to; None without
            any. All other scores are those of recordings, each the mean over its clips.

    Raises ValueError when no held-out split has a labelled clip, or a clip would not count exactly once.
    """
    store, config = plan.store, plan.config
    artifact = plan.nodes["evaluate"].artifact
    labels = config.finetune.labels
    names = class_names(store.clips, labels)
    rows = np.concatenate([rows_of(store.clips, split, labelled=True) for split in ("val", "test")])
    if not len(rows):
        raise ValueError("nothing to evaluate on: no clip of a split val or test… has a scene_label")
    folders = plan.classifiers
    kinds = [kind for kind in SVMS if kind in config.evaluate.baselines]
    train = rows_of(store.clips, "train", labelled=True)
    baselines = reader.start(svm_baselines, store, kinds, train, rows, names, labels, config.seed)
    by_network, work_seconds = reader.classify(rows, folders)
    probabilities = dict(by_network)
    seconds = {name: folder.result()["work_seconds"] for name, folder in folders.items()}
    for kind, (found, spent) in baselines().items():
        probabilities[kind], seconds[kind] = found, spent
        work_seconds += spent
    order = [name for name in (*SVMS, *folders) if name in probabilities]
    readable = store.clips.take(rows)
    by_clip = {name: predictions_table(readable, probabilities[name]) for name in order}
    for table in by_clip.values():
        check_complete(table, store.clips)
    predictions = {name: by_recording(table) for name, table in by_clip.items()}
    write_predictions(artifact, predictions, by_clip if has_parts(readable) else {})
    embeddings, spent = read_embeddings(plan, rows, reader)
    result = score_predictions(predictions, names, labels, store.clips) | {
        "clips": clip_scores(by_clip, names, labels) if has_parts(readable) else None,
        "split": split_name(config.data.split),
        "note": STAMP if config.data.dataset == "synthetic" else None,
        "train_seconds": seconds,
        "val_chose": [name for name in order if name in folders and chose_by_val(folders[name])],
        **left_out(plan),
        "embeddings": embeddings,
        "ablation": plan.ablation_models,
        "artifacts": {name: folder.url.partition(f"{plan.storage.url}/")[2] for name, folder in folders.items()},
    }
    samples = read_samples(result["mistakes"], config.evaluate.played_mistakes, store.audio, config.data.file_timeout)
    result = dict(to_dict({"verdict": verdict(result), "made": made(plan), **result}))
    write_report(result, artifact, samples, training_figures(plan))
    return result | {"work_seconds": work_seconds + spent}


def write_predictions(artifact: Folder, predictions: Mapping[str, pa.Table], by_clip: Mapping[str, pa.Table]) -> None:
    """Write the predictions of recordings, and those of their clips where some have several."""
    for folder, tables in (("predictions", predictions), ("predictions_by_clip", by_clip)):
        for name, table in tables.items():
            artifact.write_table(f"{folder}/{name}.parquet", table)


def clip_scores(by_clip: Mapping[str, pa.Table], names: Sequence[str], labels: Labels) -> dict[str, Any]:
    """By model and split, number and headline score of the clips that recordings were cut to."""
    headline = KINDS[labels].HEADLINE
    return {
        name: {
            split: {"clips": found["clips"], headline: found[headline]}
            for split, found in evaluation(table, names, labels).items()
        }
        for name, table in by_clip.items()
    }


def score_predictions(
    predictions: Mapping[str, pa.Table], names: Sequence[str], labels: Labels, clips: pa.Table
) -> dict[str, Any]:
    """Score the models' predictions, the last of which are the final model's; `clips` is the whole clip table."""
    trained_on = training_domains(clips)
    metrics = {name: evaluation(table, names, labels, trained_on) for name, table in predictions.items()}
    for name in metrics:
        if name in SVMS:  # their decision values rank the classes, but are no probabilities
            for values in metrics[name].values():
                values.update({key: None for key in PROBABILITY_SCORES if key in values})
    *others, final = predictions
    return {
        "labels": labels,
        "classes": list(names),
        "metrics": metrics,
        "trained_on": trained_on,
        "comparisons": corrected(
            {other: comparisons(predictions[final], predictions[other], names, labels) for other in others}
        ),
        "mistakes": mistakes(predictions[final], names, labels),
    }


def read_embeddings(plan: Plan, rows: Rows, reader: Reader) -> tuple[dict[str, Any] | None, float]:
    """Probe the embeddings of at most `evaluate.probe_clips` held-out clips; returns the scores and seconds of work."""
    from raymae.evaluation.probes import read_out

    store, config = plan.store, plan.config
    chosen = sample(rows, config.evaluate.probe_clips, config.seed)
    if not len(chosen):
        return None, 0.0
    embeddings, seconds = reader.embed(chosen, readings(plan))
    started = time.perf_counter()
    levels = store_statistics(store, chosen).reshape(len(chosen), -1)
    layer = config.finetune.layer or config.model.depth
    found = read_out(
        {"log-mel statistics": levels, **embeddings}, store.clips.take(chosen), config.finetune.labels, layer
    )
    return found, seconds + time.perf_counter() - started


def left_out(plan: Plan) -> dict[str, dict[str, int]]:
    """Number of labelled clips that aren't in the store, by held-out split: "quarantined" and "silent"."""
    lost = plan.clips.filter(pc.invert(pc.is_in(plan.clips["clip_id"], value_set=plan.store.clips["clip_id"])))
    is_silent = pc.is_in(lost["clip_id"], silent_clips(plan.store.folder))
    parts = {"quarantined": lost.filter(pc.invert(is_silent)), "silent": lost.filter(is_silent)}
    return {name: {split: len(some) for split, some in held_out(part).items()} for name, part in parts.items()}


def chose_by_val(classifier: Folder) -> bool:
    """Whether a classifier's weights were selected on split val."""
    return bool(classifier.result().get("selection", {}).get("weights") == "best")


def predictions_table(clips: pa.Table, probabilities: NDArray[np.float32]) -> pa.Table:
    """The clip table with a column of class probabilities."""
    return clips.append_column("probabilities", pa.array(list(probabilities), pa.list_(pa.float32())))


def readings(plan: Plan) -> dict[str, Reading]:
    """The encoders of a plan's stages by title: random weights, pre-trained (or given), fine-tuned, student.

    If the classifier subtracts the band mean of its input, which by itself removes much of the device, the first two
    are embedded with and without it.
    """
    classifier, config = plan.nodes["finetune"].artifact, plan.config.finetune
    first: dict[str, Folder | None] = {"random weights": None}
    if "pretrain" in plan.nodes:
        first["pre-trained"] = plan.nodes["pretrain"].artifact
    elif "finetune" in plan.given:
        first["given weights"] = plan.given["finetune"].artifact
    found = {title: Reading(classifier, weights, False, config.pool) for title, weights in first.items()}
    if config.subtract_band_mean:
        found |= {
            f"{title}, band mean subtracted": replace(reading, subtract_band_mean=True)
            for title, reading in found.items()
        }
    for name, node in plan.nodes.items():
        stage, turn = turn_of(name)
        if stage in STAGES and (title := STAGES[stage].encoder_title):
            title += f", round {turn}" if turn > 1 else ""
            found[title] = Reading(classifier, node.artifact, config.subtract_band_mean, config.pool)
    return found
