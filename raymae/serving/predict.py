"""`jobs/predict.py`: label audio files with a classifier, in parts that Ray Data actors write, and write one table.

    artifacts/labels/<key>/<part>.parquet     the labels of some thousands of files by the classifier with this key
                           classifier.json, model.safetensors     the classifier, where the workers read it

A part is named by its files (path, size, time of change), so any later run with the same files reuses it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymae.cluster.parts import DONE, Part, claim, part_name, write_parts
from raymae.cluster.resources.nodes import alive
from raymae.cluster.resources.pools import await_actor, growing, label_pool, most_actors, torch_device
from raymae.cluster.resources.room import alone_on_cpus
from raymae.config import Config, LabelLevel, redact
from raymae.console.bars import bar
from raymae.datasets.tables.settings import TableSettings
from raymae.features.write import hash_column
from raymae.inference.labeller import FAILED, FILES, UNREACHABLE, Labeller, schema
from raymae.pipeline.plan.init_weights import find
from raymae.serving.challenge_csv import Submission, check_classes, read_submission
from raymae.serving.inputs import find_files
from raymae.serving.output import Output, open_output, without_credentials
from raymae.storage.checksums import digest
from raymae.storage.folder import Folder, open_storage
from raymae.storage.found import what_is_there
from raymae.tracking.model_uri import open_shared

VERSION = 2
"""Part of every key; raised when the labels of a file change."""

FEW_FILES = 512
"""Files that are labelled in this process, if the job has the machine to itself."""

PART = 2048

PART_BYTES = 4_000_000_000
"""Most files of a part, and about its most bytes of audio: parts of hour-long recordings have fewer files."""

LEAST = 16
"""Fewest files of a part, if there are as many."""

CLASSIFIER = ("classifier.json", "model.safetensors")
"""The files of a classifier's folder."""

READERS = 32
"""Parquet footers that are read at the same time."""


class LabelFiles:
    """Labels the files of a part with a classifier; built on a worker."""

    def __init__(self, classifier: Folder, level: LabelLevel, threads: int) -> None:
        from raymae.inference.predictor import Predictor

        self.labeller = Labeller(Predictor(classifier, torch_device=torch_device(), threads=1), level, threads)

    def __call__(self, work: dict[str, Any]) -> pa.Table:
        return self.labeller(work["paths"])


@dataclass(frozen=True)
class Labels:
    """The parts of a result, in the order of the files."""

    folder: Folder
    parts: list[Part]
    schema: pa.Schema

    def finished(self) -> set[str]:
        """Names of the parts that exist and are complete, and whose files all could be reached."""
        existing = set(self.folder.names())
        names = [name for name in {part.name for part in self.parts} if name in existing]
        with ThreadPoolExecutor(READERS) as pool:
            return {name for name, done in zip(names, pool.map(self._is_finished, names), strict=True) if done}

    def _is_finished(self, name: str) -> bool:
        try:
            with self.folder.open(name) as file:
                return int(pq.read_schema(file).metadata[UNREACHABLE]) == 0
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return False

    def remove(self, names: Collection[str]) -> None:
        """Remove the files of some parts, if there are any, so that they are made again."""
        for name in set(self.folder.names()) & set(names):
            self.folder.remove(name)

    def settings(self) -> dict[str, Any]:
        """The keys that identify the whole result."""
        return {"labels": self.folder.url.rpartition("/")[2], "files": digest([part.name for part in self.parts])}

    def tables(self) -> Iterator[pa.Table]:
        """The tables of the parts, in order."""
        for part in self.parts:
            with self.folder.open(part.name) as file:
                yield pq.read_table(file)


def part_rows(files: int) -> int:
    """Files of a part: a power of two that divides a few files into about 16 parts, and many into parts of `PART`."""
    return max(LEAST, min(PART, 1 << max(0, (files // 16).bit_length() - 1)))


def plan_parts(files: pa.Table) -> list[Part]:
    """Divide files (path, size, mtime) into parts, each named by its files."""
    place = np.arange(len(files)) // part_rows(len(files))
    weight = np.cumsum(np.maximum(files["size"].to_numpy(), 0)) // PART_BYTES
    begins = np.flatnonzero(np.diff(place, prepend=-1) | np.diff(weight, prepend=-1))
    parts = []
    for start, stop in zip(begins, [*begins[1:], len(files)], strict=True):
        rows = files.slice(start, stop - start)
        name = hashlib.sha256()
        for column in ("path", "size", "mtime"):
            hash_column(name, rows[column])
        parts.append(Part(f"{name.hexdigest()[:24]}.parquet", len(rows), {"paths": rows["path"].to_pylist()}))
    return parts


def classifier_key(classifier: Folder, level: LabelLevel) -> str:
    """The key of a classifier's labels: a digest of its content, not of its path."""
    contents = [hashlib.sha256(classifier.read_checked(name)).hexdigest() for name in CLASSIFIER]
    return digest([VERSION, level, *contents])


def find_classifier(config: Config, option: str, model: str | None) -> Folder:
    """The folder of a job's classifier: the one given with `option`, a folder or registry URI, or the final one of the
    recipe's pipeline."""
    if model is None:
        from raymae.datasets.recordings import load_clips
        from raymae.pipeline.plan.plan import Plan

        storage = open_storage(config.storage)
        unfinished = (
            f"the pipeline of this recipe and these settings has not finished in {redact(storage.url)}: run "
            f"jobs/pipeline.py {config.recipe} with the same options first, or name a classifier with {option}"
        )
        if not storage.exists("artifacts"):  # before the clips are read, or generated
            raise ValueError(unfinished)
        clips = load_clips(config, storage)
        plan = Plan(config, clips, storage, "register", find(config, storage, "register"))
        final = plan.nodes[plan.final]
        if not final.reused:
            raise ValueError(unfinished)
        return final.artifact
    folder = open_shared(model, config)
    if not folder.exists("classifier.json"):
        raise ValueError(
            f"{option} {redact(model)} is not a classifier: it has no classifier.json{what_is_there(folder)}"
        )
    return folder


def open_submission(config: Config, output: Output) -> Submission | None:
    """The table to fill in, if one is given; ValueError where the output doesn't fit it."""
    if config.predict.submission is None:
        return None
    if not (output.file and output.file.endswith(".csv")):
        raise ValueError(f"--predict.output {output} must be a .csv file: --predict.submission is one")
    if config.predict.level != "file":
        raise ValueError(f"--predict.level {config.predict.level}: --predict.submission has a row per file")
    return read_submission(config.predict.submission)


def copy_classifier(classifier: Folder, target: Folder) -> Folder:
    """Copy the classifier to the folder of its labels: a registered one is on the driver's disk alone."""
    for name in CLASSIFIER:
        if not target.exists(name):
            target.write_bytes(name, classifier.read_bytes(name))
    return target


def plan_labels(files: pa.Table, classifier: Folder, config: Config) -> Labels:
    """The parts of the result, and the folder where they are or will be."""
    level = config.predict.level
    folder = open_storage(config.storage) / f"artifacts/labels/{classifier_key(classifier, level)}"
    return Labels(folder, plan_parts(files), schema(classifier.read_json("classifier.json")["class_names"], level))


def label_here(
    parts: Sequence[Part], folder: Folder, classifier: Folder, config: Config, progress: Callable[[int], Any]
) -> None:
    """Label parts in this process, on its CPUs."""
    from raymae.inference.predictor import Predictor

    threads = config.compute.torch_threads or os.cpu_count() or 1
    label = Labeller(Predictor(classifier, threads=1), config.predict.level, threads)
    for part in parts:
        folder.write_table(part.name, label(part.work["paths"]))
        progress(part.size)


def label_on_ray(
    parts: Sequence[Part], folder: Folder, classifier: Folder, config: Config, progress: Callable[[int], Any]
) -> None:
    """Label parts on all nodes of the cluster."""
    from raymae.cluster.connect import start_ray

    start_ray(config.compute)
    await_actor(config.compute, "actors that predict")
    pool, threads = label_pool(config.compute, alive(), len(parts))
    pool["compute"] = growing(pool["compute"].max_size, most_actors(config.compute, threads, len(parts)))
    write_parts(parts, folder, LabelFiles, (classifier, config.predict.level, threads), pool, progress)


def label_files(config: Config) -> dict[str, Any]:
    """Label every input and write the table, in the order of the inputs; returns the counts.

    Finished parts are not made again, except those in which a storage couldn't be reached.
    """
    output = open_output("--predict.output", config.predict.output)
    submission = open_submission(config, output)
    files = find_files(config.predict.inputs, TableSettings.of(config.data, *config.predict.inputs))
    if submission:
        paths = files["path"].to_pylist()
        place = {path: row for row, path in enumerate(paths)}
        files = files.take([place[path] for path in submission.files(paths)])
    classifier = find_classifier(config, "--predict.model", config.predict.model)
    if submission:
        check_classes(classifier.read_json("classifier.json"), submission.path)
    labels = plan_labels(files, classifier, config)
    if not output.file:
        claim(output.folder, labels.settings(), "--predict.output", "labels")
    finished = labels.finished()
    missing = {part.name: part for part in labels.parts if part.name not in finished}
    done = sum(part.size for part in labels.parts if part.name in finished)
    with bar("predict", len(files), "file", done) as shown:
        if missing:
            labels.remove(missing)
            copied, todo = copy_classifier(classifier, labels.folder), list(missing.values())
            if len(files) <= FEW_FILES and alone_on_cpus(config.compute):
                label_here(todo, labels.folder, copied, config, shown.advance)
            else:
                label_on_ray(todo, labels.folder, copied, config, shown.advance)
    counts = write_output(labels, output, submission)
    print(f"{counts['files']} files, {counts['failed']} of them with an error: {output}")
    result = {
        "job": "predict",
        **counts,
        "output": redact(config.predict.output or ""),
        "classifier": redact(classifier.url),
    }
    return result | {"parts": len(labels.parts), "reused": sum(part.name in finished for part in labels.parts)}


def write_output(labels: Labels, output: Output, submission: Submission | None) -> dict[str, int]:
    """Write the output from the parts; returns the numbers of files, of failed files and of rows."""
    counts = Counter(files=0, failed=0, rows=0)

    def counted() -> Iterator[pa.Table]:
        for table in labels.tables():
            metadata = table.schema.metadata
            counts.update(files=int(metadata[FILES]), failed=int(metadata[FAILED]), rows=len(table))
            yield without_credentials(table)

    if submission:
        assert output.file
        predicted = [label for table in counted() for label in table["scene_label"].to_pylist()]
        output.folder.write_bytes(output.file, submission.filled(predicted))
    elif output.file:
        output.write(counted(), labels.schema)
    else:
        for table in counted():
            output.folder.write_table(part_name(counts["files"] - int(table.schema.metadata[FILES])), table)
        output.folder.write_json(DONE, dict(counts))
    return dict(counts)
