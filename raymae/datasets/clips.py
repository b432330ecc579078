"""Load the clips of a run: data sets by name, pool tables for any of them, and their splits.

A data set is a function from its settings and a folder for what it writes itself (None where the storage is no local
folder) to rows with the columns of `ROWS` and, where it knows, `recorded`. To add one, write
`datasets/published/<name>.py` and a line in `DATASETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig
from raymae.datasets import synthetic
from raymae.datasets.checks import check_files, check_groups, check_labels, evaluated
from raymae.datasets.labels import Labels
from raymae.datasets.published import audioset, cas2023, tau
from raymae.datasets.published.nominal import SHAPES, absent, nominal
from raymae.datasets.published.official import differences
from raymae.datasets.splits.assign import assign, settings
from raymae.datasets.tables.table import CLIPS, read_table
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)


def own_folder(storage: Folder) -> Path | None:
    """Where a data set writes files of its own: below a local storage; None where the storage is a URL."""
    return Path(storage.path("datasets")) if storage.is_local else None


def load_synthetic(config: DataConfig, folder: Path | None) -> pa.Table:
    """The embedded data set; it is written into `folder` where it doesn't stand there yet."""
    if folder is None:
        raise ValueError("data.dataset = synthetic writes recordings: give a local folder as --storage, not a URL")
    return read_table(str(synthetic.write(folder, config.synthetic)))


def load_tables(config: DataConfig, folder: Path | None) -> pa.Table:
    """The user's own tables, together."""
    if not config.tables:
        raise ValueError("data.dataset = table needs --data.tables: CSV or Parquet files with a column filename")
    return join([read_table(url, labels=(config.label_column, config.label_separator)) for url in config.tables])


DATASETS: dict[str, Callable[[DataConfig, Path | None], pa.Table]] = {
    "synthetic": load_synthetic,
    "table": load_tables,
    "cas2023": cas2023.load_dev,
    "cas2023_eval": cas2023.load_eval,
    "tau2019": tau.loader("tau2019"),
    "tau2020_mobile": tau.loader("tau2020_mobile"),
    "tau2022_mobile": tau.loader("tau2022_mobile"),
    "audioset": audioset.load,
}


def load(config: DataConfig, folder: Path | None, labels: Labels | None = None) -> pa.Table:
    """The clip table (`CLIPS`) of a run: its data set and its pool tables.

    `labels` says how scene_label is to be read, and that a classifier is to be trained on it. Raises ValueError for an
    unknown data set, for what `read_table` and `splits.assign` reject, for a file that two rows share, for a group with
    clips on both sides of the evaluation, when more files are missing than `max_bad_share` allows, and for what
    `check_labels` rejects.
    """
    rows = assign(load_rows(config, folder), config.split)
    check_files(rows, config.max_bad_share)
    used = settings(config.split)
    if used.kind == "random":
        log.warning("data.split.kind = random cuts recordings apart: its scores are a leak's")
    else:
        check_groups(rows, transductive=used.transductive)
    if labels:
        check_labels(rows, labels)
    return rows.select(CLIPS.names)


def load_nominal(config: DataConfig, folder: Path | None, labels: Labels | None = None) -> pa.Table:
    """As `load`, with generated clips (`nominal`) for the data sets that are absent: their names and true counts.

    Pool tables are read. Raises ValueError for a pool data set whose shape isn't known, and what `load` raises of
    splits and labels.
    """
    name = config.dataset
    own = nominal(name) if name in absent(config) else find_dataset("data.dataset =", name)(config, folder)
    tables, named = pools_of(config)
    pools = [read_table(url, pool=True, weight=weight) for url, weight in tables]
    pools += [nominal_pool(pool, weight) for pool, weight in named]
    rows = assign(join([own, *pools]), config.split)
    if labels:
        check_labels(rows, labels)
    return rows.select(CLIPS.names)


def nominal_pool(pool: str, weight: float) -> pa.Table:
    """What a data set (name:folder) gives to a pool: all that it doesn't evaluate on, without labels."""
    name = pool.partition(":")[0]
    if name not in SHAPES:
        raise ValueError(f"data.pool_datasets: a dry run without the audio knows {', '.join(SHAPES)}, not {name!r}")
    return as_pool(pool, nominal(name), weight)


def load_rows(config: DataConfig, folder: Path | None) -> pa.Table:
    """The rows (`ROWS` and, where a data set knows it, recorded) of a run before they are split.

    Raises ValueError for an unknown data set and for what `read_table` rejects.
    """
    rows, missed = gather(config, folder)
    for line in missed:
        log.warning("%s", line)
    return rows


def gather(config: DataConfig, folder: Path | None) -> tuple[pa.Table, list[str]]:
    """All rows of a run, of its data set and its pools, unchecked; and where published data sets are not whole."""
    own = find_dataset("data.dataset =", config.dataset)(config, folder)
    tables, named = pools_of(config)
    missed = differences(config.dataset, own)
    pools = [read_table(url, pool=True, weight=weight) for url, weight in tables]
    for pool, weight in named:
        name, _, root = pool.partition(":")
        whole = find_dataset("data.pool_datasets:", name)(pool_config(config, name, root), folder)
        missed += differences(name, whole)
        pools.append(as_pool(pool, whole, weight))
    return join([own, *pools]), missed


def pools_of(config: DataConfig) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The pool tables and the pool data sets, each with its weight."""
    names = (*config.pool_tables, *config.pool_datasets)
    pools = list(zip(names, config.pool_weights or (1.0,) * len(names), strict=True))
    return pools[: len(config.pool_tables)], pools[len(config.pool_tables) :]


def find_dataset(setting: str, name: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of a data set; ValueError where there is none."""
    if name not in DATASETS:
        raise ValueError(f"{setting} {name!r} is unknown; valid: {', '.join(DATASETS)}")
    return DATASETS[name]


def pool_config(config: DataConfig, name: str, root: str) -> DataConfig:
    """The settings of a data set in the pool."""
    return DataConfig(dataset=name, root=root, max_bad_share=config.max_bad_share)


def as_pool(name: str, rows: pa.Table, weight: float) -> pa.Table:
    """Rows that serve pre-training alone: without labels, and without what their data set evaluates on."""
    kept = rows.filter(pc.invert(evaluated(rows)))
    if not len(kept):
        raise ValueError(f"data.pool_datasets: {name} has clips to evaluate on alone, none to train on")
    log.info("%s: %d clips for pre-training, %d held out there stay out", name, len(kept), len(rows) - len(kept))
    values = {
        "split": pa.repeat("pool", len(kept)),
        "scene_label": pa.nulls(len(kept), pa.string()),
        "weight": pa.repeat(weight, len(kept)),
    }
    for column, value in values.items():
        kept = kept.set_column(kept.schema.get_field_index(column), column, value)
    return kept


def join(tables: list[pa.Table]) -> pa.Table:
    """Tables one after the other; a later table whose clip_ids are taken gets its number in front of them."""
    rows = tables[0]
    for number, table in enumerate(tables[1:], start=1):
        clip_id = table["clip_id"]
        while pc.any(pc.is_in(clip_id, value_set=rows["clip_id"])).as_py():
            clip_id = pc.binary_join_element_wise(str(number), clip_id, "/")
        # some data sets know one column more: when their clips were recorded
        rows = pa.concat_tables([rows, table.set_column(0, "clip_id", clip_id)], promote_options="default")
    return rows
