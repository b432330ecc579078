"""FSD50K: clips of Freesound, 0.3 to 30 seconds long, each with any number of the 200 classes.

The folder holds `FSD50K.ground_truth/` with `dev.csv` (`fname,labels,mids,split`), `eval.csv` (`fname,labels,mids`) and
`vocabulary.csv` (number, label and id of every class, without a header), and the recordings in `FSD50K.dev_audio/` and
`FSD50K.eval_audio/`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.labels import SEPARATOR
from raymae.datasets.published.official import clip_rows, read_csv, recordings_in, root_of, warn_of_extra
from raymae.datasets.tables.locate import locate, reject
from raymae.storage.folder import Folder

TRUTH = "FSD50K.ground_truth"
AUDIO = {"dev": "FSD50K.dev_audio", "eval": "FSD50K.eval_audio"}


def load(config: DataConfig, folder: Path | None) -> pa.Table:
    """`ROWS`: splits train and val of the development part and test, the evaluation part; without groups.

    Each clip is a recording of its own; scene_label holds its classes joined by `SEPARATOR`. Missing recordings have
    size -1. Raises ValueError for a missing CSV, for an unknown class or split and for a clip that both parts name.
    """
    root = root_of(config)
    classes = read_vocabulary(root)
    dev, tested = (read_part(root, part, classes) for part in ("dev", "eval"))
    both = pc.is_in(dev["clip_id"], value_set=tested["clip_id"].combine_chunks())
    reject(redact((root / f"{TRUTH}/dev.csv").url), dev, both, "clip_id", "not be in eval.csv, too")
    rows = pa.concat_tables([dev, tested]).combine_chunks()
    extra = set(recordings_in(root, *AUDIO.values())).difference(rows["filename"].to_pylist())
    warn_of_extra(redact(root.url), extra)
    return clip_rows(locate(redact(root.url), root, rows), "fsd50k")


def read_vocabulary(root: Folder) -> list[str]:
    """The classes, in the order of vocabulary.csv."""
    path = f"{TRUTH}/vocabulary.csv"
    if not root.exists(path):
        raise ValueError(f"data.root = {redact(root.url)} holds no {path}: it should be the folder of FSD50K")
    records = list(csv.reader(root.read_bytes(path).decode("utf-8-sig").splitlines()))
    wrong = [number for number, record in enumerate(records, start=1) if len(record) != 3 or not record[1]]
    if wrong or not records:
        place = f", row {wrong[0]}" if wrong else ""
        raise ValueError(f"{redact((root / path).url)}{place}: should be the number, label and id of a class")
    return [record[1] for record in records]


def read_part(root: Folder, part: str, classes: list[str]) -> pa.Table:
    """clip_id, filename, scene_label, split and row of dev.csv or eval.csv."""
    path = f"{TRUTH}/{part}.csv"
    name = redact((root / path).url)
    rows = read_csv(root, path, ("fname", "labels", *(("split",) if part == "dev" else ())))
    check_classes(name, rows, classes)
    split = rows["split"] if part == "dev" else pa.repeat("test", len(rows))
    known = pc.is_in(split, value_set=pa.array(["train", "val", "test"]))
    if part == "dev":
        reject(name, rows, pc.invert(known), "split", "be train or val")
    filename = pc.binary_join_element_wise(AUDIO[part], rows["fname"], "/")
    columns = {
        "clip_id": rows["fname"],
        "filename": pc.binary_join_element_wise(filename, "wav", "."),
        "scene_label": pc.replace_substring(rows["labels"], ",", SEPARATOR),
        "split": split,
        "row": rows["row"],
    }
    return pa.table(columns)


def check_classes(name: str, rows: pa.Table, classes: list[str]) -> None:
    """Raise ValueError for a row whose labels are not all in vocabulary.csv."""
    known = set(classes)
    wrong = [not known.issuperset((labels or "").split(",")) for labels in rows["labels"].to_pylist()]
    reject(name, rows, pa.array(wrong), "labels", "be classes of vocabulary.csv, with commas between")
