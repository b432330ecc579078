"""`jobs/predict.py`: label audio files with a classifier, one row per file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import ray
import ray.data
from tqdm import tqdm

from raymae.artifacts import Folder, open_storage
from raymae.config import Config, redact
from raymae.sources import AUDIO, open_clip
from raymae.submission import check_classes, read_submission
from raymae.weights import find, open_artifact

FILES_PER_TASK = 16


class Label:
    """A Ray Data actor that holds the classifier."""

    def __init__(self, classifier: Folder, threads: int) -> None:
        from raymae.predict import Predictor

        self.predictor = Predictor(classifier, threads=threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self.predictor.row(path, open_clip) for path in batch["path"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=schema(self.predictor.class_names))


def schema(class_names: list[str]) -> pa.Schema:
    """Columns of the result."""
    first = [("path", pa.string()), ("scene_label", pa.string()), ("confidence", pa.float32()), ("error", pa.string())]
    return pa.schema([*first, *((name, pa.float32()) for name in class_names)])


def find_files(inputs: tuple[str, ...]) -> list[str]:
    """Audio files named directly, below folders, in CSV or Parquet tables, or in tar or Parquet shards."""
    from raymae.datasets.table import read_filenames

    found: list[str] = []
    for name in inputs:
        path = Path(name).expanduser()
        if path.is_dir():
            below = sorted(str(item.resolve()) for item in path.rglob("*") if item.suffix.lower() in AUDIO)
            if not below:
                raise ValueError(f"--predict.inputs: no audio file ({', '.join(AUDIO)}) below {path}")
            found += below
        elif path.suffix.lower() in (".csv", ".tsv", ".parquet", ".tar"):
            found += read_filenames(path)
        else:
            found.append(str(path.resolve()))
    if not found:
        raise ValueError("--predict.inputs names no file: give audio files, folders, or tables with a filename column")
    return found


def find_classifier(config: Config) -> Folder:
    """The folder of the classifier: the one given, the registered one, or the final one of the recipe's pipeline."""
    model = config.predict.model
    if model is None:
        from raymae.datasets import load
        from raymae.plan import Plan

        storage = open_storage(config.storage)
        clips = load(config.data, Path(storage.path("datasets")) if storage.is_local else None)
        plan = Plan(config, clips, storage, "register", find(config, storage, "register"))
        final = plan.nodes[plan.final]
        if not final.reused:
            raise ValueError(
                "the pipeline of this recipe and these settings has not finished: run jobs/pipeline.py first, "
                "or name a classifier with --predict.model"
            )
        return final.artifact
    folder = open_artifact(model, config)
    if not folder.exists("classifier.json"):
        raise ValueError(f"--predict.model {redact(model)} is no classifier: it has no classifier.json")
    return folder


def label_files(config: Config) -> dict[str, Any]:
    """Label every input; writes one row per file and returns the counts."""
    from raymae.launch import start_ray

    output = config.predict.output
    if output is None or not output.endswith((".csv", ".parquet")):
        raise ValueError(f"--predict.output {output} must name a .csv or .parquet file to write")
    files = find_files(config.predict.inputs)
    submission = read_submission(config.predict.submission) if config.predict.submission else None
    if submission:
        if not output.endswith(".csv"):
            raise ValueError(f"--predict.output {output} must be a .csv file: --predict.submission is one")
        files = submission.files(files)
    classifier = find_classifier(config)
    if submission:
        check_classes(classifier.read_json("classifier.json"), submission.path)
    start_ray(config.compute)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cores = int(max(node["Resources"].get("CPU", 1) for node in nodes))
    tasks = -(-len(files) // FILES_PER_TASK)
    labelled = (
        ray.data.from_arrow(pa.table({"path": files}))
        .repartition(tasks)
        .map_batches(
            Label,
            batch_size=FILES_PER_TASK,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(nodes)),
            fn_constructor_args=(classifier, config.compute.torch_threads or cores),
        )
    )
    blocks = []
    with tqdm(total=len(files), desc="predict", unit="file", mininterval=1) as bar:
        for block in labelled.iter_batches(batch_size=None, batch_format="pyarrow"):
            blocks.append(block)
            bar.update(len(block))
    table = pa.concat_tables(blocks)
    if submission:
        labels = dict(zip(table["path"].to_pylist(), table["scene_label"].to_pylist(), strict=True))
        Path(output).write_bytes(submission.filled([labels[path] for path in files]))
    elif output.endswith(".csv"):
        pa.csv.write_csv(table, output)
    else:
        pq.write_table(table, output)
    failed = len(table) - table["error"].null_count
    print(f"{len(table)} files, {failed} of them not readable: {output}")
    return {"job": "predict", "files": len(table), "failed": failed, "output": output, "classifier": classifier.url}
