"""`jobs/predict.py`: label audio files with a classifier, in parts that Ray Data actors write, and hand over one table.

    artifacts/labels/<key>/<part>.parquet     what the classifier with this key says of some thousands of files
                           classifier.json, model.safetensors     it, where the workers read it

A part is named by its files (path, size, time of change): what stands is found again by any run that asks for them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from raymae.cluster.parts import DONE, Part, claim, part_name, write_parts
from raymae.cluster.pools import label_pool, torch_device
from raymae.config import Config, LabelLevel, redact
from raymae.features.write import hash_column
from raymae.inference.labeller import FAILED, FILES, UNREACHABLE, Labeller, schema
from raymae.pipeline.plan.init_weights import find
from raymae.serving.challenge_csv import Submission, check_classes, read_submission
from raymae.serving.inputs import find_files
from raymae.serving.output import Output, open_output, without_credentials
from raymae.storage.folder import Folder, digest, open_storage
from raymae.tracking.model_uri import open_shared

VERSION = 1
"""Part of every key; a change of what is said of a file raises it."""

PART = 2048

PART_BYTES = 4_000_000_000
"""Most files of a part, and about the most bytes of audio: of hour-long recordings a part holds fewer."""

LEAST = 16

CLASSIFIER = ("classifier.json", "model.safetensors")
"""The files of a classifier's folder."""

READERS = 32
"""Footers that are read at the same time."""


class LabelFiles:
    """Holds the classifier and labels a part's files; built on a worker."""

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

    def standing(self) -> set[str]:
        """Names of the parts that stand, whole, and whose files all could be reached."""
        there = set(self.folder.names())
        names = [name for name in {part.name for part in self.parts} if name in there]
        with ThreadPoolExecutor(READERS) as pool:
            return {name for name, sound in zip(names, pool.map(self._is_sound, names), strict=True) if sound}

    def _is_sound(self, name: str) -> bool:
        try:
            with self.folder.open(name) as file:
                return int(pq.read_schema(file).metadata[UNREACHABLE]) == 0
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return False

    def remove(self, names: Collection[str]) -> None:
        """Remove what there is of some parts, so that they are made again."""
        for name in set(self.folder.names()) & set(names):
            self.folder.remove(name)

    def settings(self) -> dict[str, Any]:
        """What names the whole result."""
        return {"labels": self.folder.url.rpartition("/")[2], "files": digest([part.name for part in self.parts])}

    def tables(self) -> Iterator[pa.Table]:
        """The content of one part after the other."""
        for part in self.parts:
            with self.folder.open(part.name) as file:
                yield pq.read_table(file)


def part_rows(files: int) -> int:
    """Files of a part: a power of two that gives a few files about 16 parts, and many files parts of `PART`."""
    return max(LEAST, min(PART, 1 << max(0, (files // 16).bit_length() - 1)))


def plan_parts(files: pa.Table) -> list[Part]:
    """Cut files (path, size, mtime) into parts, each named by its files."""
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
    """What names the labels of a classifier: its content, wherever it lies."""
    contents = [hashlib.sha256(classifier.read_bytes(name)).hexdigest() for name in CLASSIFIER]
    return digest([VERSION, level, *contents])


def find_classifier(config: Config, option: str, model: str | None) -> Folder:
    """The folder of a job's classifier: the one given with `option`, the registered one, or the final one of the
    recipe's pipeline."""
    if model is None:
        from raymae.datasets.clips import load, own_folder
        from raymae.pipeline.plan.plan import Plan

        storage = open_storage(config.storage)
        clips = load(config.data, own_folder(storage))
        plan = Plan(config, clips, storage, "register", find(config, storage, "register"))
        final = plan.nodes[plan.final]
        if not final.reused:
            raise ValueError(
                "the pipeline of this recipe and these settings has not finished: run jobs/pipeline.py first, "
                f"or name a classifier with {option}"
            )
        return final.artifact
    folder = open_shared(model, config)
    if not folder.exists("classifier.json"):
        raise ValueError(f"{option} {redact(model)} is not a classifier: it has no classifier.json")
    return folder


def open_submission(config: Config, output: Output) -> Submission | None:
    """The table that is to be filled in, if one is; ValueError where the output can't be one."""
    if config.predict.submission is None:
        return None
    if not (output.file and output.file.endswith(".csv")):
        raise ValueError(f"--predict.output {output} must be a .csv file: --predict.submission is one")
    if config.predict.level != "file":
        raise ValueError(f"--predict.level {config.predict.level}: --predict.submission has a row per file")
    return read_submission(config.predict.submission)


def bring(classifier: Folder, target: Folder) -> Folder:
    """Copy the classifier beside its labels: a registered one lies on the driver's own disk."""
    for name in CLASSIFIER:
        if not target.exists(name):
            target.write_bytes(name, classifier.read_bytes(name))
    return target


def plan_labels(files: pa.Table, classifier: Folder, config: Config) -> Labels:
    """The parts that the result is made of, and where they are or will be."""
    level = config.predict.level
    folder = open_storage(config.storage) / f"artifacts/labels/{classifier_key(classifier, level)}"
    return Labels(folder, plan_parts(files), schema(classifier.read_json("classifier.json")["class_names"], level))


def label_files(config: Config) -> dict[str, Any]:
    """Label every input, a row for each in their order, and hand over the table; returns the counts.

    Parts that stand are not made again, but for those in which a storage failed.
    """
    from raymae.cluster.connect import start_ray

    output = open_output("--predict.output", config.predict.output)
    submission = open_submission(config, output)
    files = find_files(config.predict.inputs)
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
    standing = labels.standing()
    lacking = {part.name: part for part in labels.parts if part.name not in standing}
    with tqdm(total=len(files), desc="predict", unit="file", mininterval=1) as bar:
        bar.update(sum(part.size for part in labels.parts if part.name in standing))
        if lacking:
            labels.remove(lacking)
            start_ray(config.compute)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            pool, threads = label_pool(config.compute, nodes, len(lacking))
            arguments = (bring(classifier, labels.folder), config.predict.level, threads)
            write_parts(list(lacking.values()), labels.folder, LabelFiles, arguments, pool, bar.update)
    counts = hand_over(labels, output, submission)
    print(f"{counts['files']} files, {counts['failed']} of them not readable: {output}")
    result = {
        "job": "predict",
        **counts,
        "output": redact(config.predict.output or ""),
        "classifier": redact(classifier.url),
    }
    return result | {"parts": len(labels.parts), "reused": sum(part.name in standing for part in labels.parts)}


def hand_over(labels: Labels, output: Output, submission: Submission | None) -> dict[str, int]:
    """Write the output from the parts; returns the numbers of files, of failed ones and of rows."""
    counts = Counter(files=0, failed=0, rows=0)

    def counted() -> Iterator[pa.Table]:
        for table in labels.tables():
            said = table.schema.metadata
            counts.update(files=int(said[FILES]), failed=int(said[FAILED]), rows=len(table))
            yield without_credentials(table)

    if submission:
        assert output.file
        said = [label for table in counted() for label in table["scene_label"].to_pylist()]
        output.folder.write_bytes(output.file, submission.filled(said))
    elif output.file:
        output.write(counted(), labels.schema)
    else:
        for table in counted():
            output.folder.write_table(part_name(counts["files"] - int(table.schema.metadata[FILES])), table)
        output.folder.write_json(DONE, dict(counts))
    return dict(counts)
