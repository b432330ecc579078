"""DCASE 2024 and 2025 task 1: TAU Urban Acoustic Scenes 2022 Mobile with the training subsets of the 2024 task.

The folder is that of TAU 2022 Mobile (`raymae.datasets.published.tau`); the task's `split5.csv`, `split10.csv`,
`split25.csv`, `split50.csv` and `split100.csv` (column `filename`, tab-separated) are in it, or in its `split_setup/`
or `evaluation_setup/`. Of 2025 the 25 % subset is the training set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, redact
from raymae.datasets.published.official import clip_rows, read_csv, root_of
from raymae.datasets.published.tau import Fold, check_fold, filenames, read_clips, read_fold
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

FOLDERS = ("", "split_setup/", "evaluation_setup/")
"""Where the task's CSVs may be; its baseline keeps them in split_setup."""


def loader(dataset: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of one of the two tasks."""
    return lambda config, folder: read(config, dataset)


def read(config: DataConfig, dataset: str) -> pa.Table:
    """`ROWS`: split train is the subset, test the official fold's; group "city-location", city and device as in TAU.

    All other clips are left out, and their count is logged: the rules allow no others, not even without their labels.
    Raises ValueError for a missing CSV, and as the loader of TAU 2022 Mobile does.
    """
    root = root_of(config)
    rows = read_clips(root, "tau2022_mobile")
    train = read_subset(root, (config.subset or 100) if dataset == "dcase2024_task1" else 25)
    test = read_fold(root, "evaluate", "test")
    check_fold(rows, train, test, config.max_bad_share)
    in_train, in_test = (pc.is_in(rows["filename"], value_set=filenames(fold)) for fold in (train, test))
    rows = rows.append_column("split", pc.if_else(in_train, "train", "test"))
    rows = rows.append_column("clip_id", rows["filename"])
    used = rows.filter(pc.or_(in_train, in_test))
    log.info(
        "%s: %d clips are neither in %s nor in the test fold and are left out, as the rules of %s demand",
        *(redact(root.url), len(rows) - len(used), train[0][0].rpartition("/")[2], dataset),
    )
    return clip_rows(used, dataset)


def read_subset(root: Folder, percent: int) -> Fold:
    """The training subset, with its file name; ValueError where the task's CSV is missing."""
    places = [f"{folder}split{percent}.csv" for folder in FOLDERS]
    path = next((path for path in places if root.exists(path)), None)
    if path is None:
        raise ValueError(
            f"data.root = {redact(root.url)} has no {', no '.join(places)}: the task's training subset; get it from "
            "https://github.com/CPJKU/dcase2024_task1_baseline/releases/tag/files"
        )
    return [(redact((root / path).url), read_csv(root, path, ("filename",), delimiter="\t"))]
