"""Load the clips of a run: a data set by name, pool tables and pool data sets, and the split.

A data set is a function of its settings and a folder that it may write files to (None where the storage is not a local
folder). It returns rows with the columns of `ROWS` and, where known, `recorded`. To add one, write
`datasets/published/<name>.py` and a line in `DATASETS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import DataConfig, nearest, redact
from raymae.config.data import FOLDED
from raymae.datasets import synthetic
from raymae.datasets.checks import (
    check_files,
    check_groups,
    check_held_out,
    check_labels,
    evaluated,
    unlabelled_hint,
)
from raymae.datasets.content import with_content
from raymae.datasets.folds import fold_names, with_test_fold
from raymae.datasets.labels import Labels
from raymae.datasets.published import audioset, cas2023, dcase_task1, esc50, folders, fsd50k, tau, urbansound8k
from raymae.datasets.published.nominal import SHAPES, absent, nominal
from raymae.datasets.published.official import differences
from raymae.datasets.rows import held_out
from raymae.datasets.spellings import check_spellings, merge_spellings
from raymae.datasets.splits.assign import assign, settings
from raymae.datasets.tables.hugging_face import is_hub_table, read_hub_table
from raymae.datasets.tables.links import Links
from raymae.datasets.tables.parts import PARTS
from raymae.datasets.tables.settings import TableSettings
from raymae.datasets.tables.table import CLIPS, holds_recordings, read_table
from raymae.storage.folder import Folder
from raymae.storage.hub import reading

log = logging.getLogger(__name__)


def own_folder(storage: Folder) -> Path | None:
    """The folder below a local storage that a data set may write files to; None where the storage is a URL."""
    return Path(storage.path("datasets")) if storage.is_local else None


def load_synthetic(config: DataConfig, folder: Path | None) -> pa.Table:
    """The synthetic data set, written to `folder` if it is not there yet."""
    if folder is None:
        raise ValueError("data.dataset = synthetic writes recordings: give a local folder as --storage, not a URL")
    return read_table(str(synthetic.write(folder, config.synthetic)))


def load_tables(config: DataConfig, folder: Path | None) -> pa.Table:
    """The rows of the user's own tables; with folds, their split."""
    rows = read_tables(config)
    if config.fold_column is None:
        return rows
    if config.test_fold is None:
        raise ValueError(
            f"data.fold_column = {config.fold_column!r} needs data.test_fold, the fold that is split test, one of "
            f"{', '.join(fold_names(rows))}; --folds tests on each in turn (jobs/evaluate.py and jobs/pipeline.py)"
        )
    return with_test_fold(rows, config.test_fold)


def read_tables(config: DataConfig) -> pa.Table:
    """The rows of `data.tables` one after the other, as they say."""
    if not config.tables:
        raise ValueError(
            "data.dataset = table needs --data.tables: CSV or Parquet files with a column filename, or for "
            "pre-training a folder of recordings"
        )
    table = TableSettings.of(config)
    rows = join([load_table(url, table) for url in config.tables])
    return merge_spellings(rows) if config.merge_labels else rows


def load_table(url: str, settings: TableSettings) -> pa.Table:
    """The rows of a table of the user's, of Hugging Face's hub, or of a folder or tar, which has no labels."""
    if is_hub_table(url):
        return read_hub_table(url, settings.label, settings.separator)
    if not holds_recordings(url):
        return read_table(url, settings=settings)
    rows = load_pool(url, 1.0, settings.links)
    log.warning(
        "%s is a folder or tar, without labels: its %d recordings are for pre-training; for labels, name the table in "
        "it, or give a folder per class by --data.dataset folders --data.root",
        *(redact(url), len(rows)),
    )
    return rows.set_column(rows.schema.get_field_index("split"), "split", pa.repeat("train", len(rows)))


def load_pool(url: str, weight: float, links: Links) -> pa.Table:
    """The rows of a pool table."""
    with reading(url):
        return read_table(url, pool=True, weight=weight, settings=TableSettings(links=links))


def load_folds(config: DataConfig, labels: Labels) -> list[str]:
    """The folds of a data set or of `data.tables`, in order; ValueError where one can't be tested on."""
    if config.dataset in FOLDED:
        return [str(number + 1) for number in range(FOLDED[config.dataset])]
    rows = read_tables(config)
    check_spellings(rows)
    names = fold_names(rows)
    if len(names) < 2:
        raise ValueError(f"column {config.fold_column}: {names[0]!r} is the only fold; folds needs two or more")
    for name in names:
        split = with_test_fold(rows, name)
        if not held_out(split):
            raise ValueError(f"column {config.fold_column}: no clip of fold {name!r} has a label to be scored by")
        check_groups(split)
        check_labels(assign(split, config.split), labels, unlabelled_hint(rows, config))
    return names


DATASETS: dict[str, Callable[[DataConfig, Path | None], pa.Table]] = {
    "synthetic": load_synthetic,
    "table": load_tables,
    "cas2023": cas2023.load_dev,
    "cas2023_eval": cas2023.load_eval,
    "tau2019": tau.loader("tau2019"),
    "tau2020_mobile": tau.loader("tau2020_mobile"),
    "tau2022_mobile": tau.loader("tau2022_mobile"),
    "dcase2024_task1": dcase_task1.loader("dcase2024_task1"),
    "dcase2025_task1": dcase_task1.loader("dcase2025_task1"),
    "audioset": audioset.load,
    "esc50": esc50.loader("esc50"),
    "esc10": esc50.loader("esc10"),
    "urbansound8k": urbansound8k.load,
    "fsd50k": fsd50k.load,
    "folders": folders.load,
}


def load(config: DataConfig, folder: Path | None, labels: Labels | None = None, *, scored: bool = False) -> pa.Table:
    """The clip table (`CLIPS`) of a run: its data set and its pools.

    Give `labels` when a classifier is to be trained on scene_label; it is then checked, and the held-out splits, too,
    which must not all be missing where models are `scored`. Raises ValueError for an
    unknown data set, for what `read_table` and `splits.assign` reject, for a file that two rows share, for a group with
    clips to train on and clips to evaluate on, when more files are missing than `max_bad_share` allows, and for what
    `check_labels` rejects.
    """
    rows = load_rows(config, folder)
    if labels:
        check_spellings(rows)  # before a split leaves out held-out clips of a class without training clips
    rows = assign(rows, config.split)
    check_files(rows, config.max_bad_share)
    used = settings(config.split)
    if used.kind == "random":
        log.warning("data.split.kind = random puts clips of one recording on both sides: its scores are inflated")
    else:
        check_groups(rows, transductive=used.transductive)
    if labels:
        check_labels(rows, labels, unlabelled_hint(rows, config))
        check_held_out(rows, scored)
    return with_content(rows).select([*CLIPS.names, *(name for name in PARTS if name in rows.column_names)])


def load_nominal(
    config: DataConfig, folder: Path | None, labels: Labels | None = None, *, scored: bool = False
) -> pa.Table:
    """`load` for a dry run: absent data sets are replaced by generated clips with their true counts (`nominal`).

    Pool tables are read. Raises ValueError for a pool data set that is not in `SHAPES`, and where `load` does for
    splits and labels.
    """
    name = config.dataset
    own = nominal(name) if name in absent(config) else find_dataset("data.dataset =", name)(config, folder)
    tables, named = pools_of(config)
    pools = [load_pool(url, weight, Links.of(config)) for url, weight in tables]
    pools += [nominal_pool(pool, weight) for pool, weight in named]
    rows = join([own, *pools])
    if labels:
        check_spellings(rows)
    rows = assign(rows, config.split)
    if labels:
        check_labels(rows, labels, unlabelled_hint(rows, config))
        check_held_out(rows, scored)
    return rows.append_column("content", pa.nulls(len(rows), pa.string())).select(CLIPS.names)


def nominal_pool(pool: str, weight: float) -> pa.Table:
    """Generated clips of a pool data set (name:folder): all but those that it evaluates on, without labels."""
    name = pool.partition(":")[0]
    if name not in SHAPES:
        raise ValueError(f"data.pool_datasets: a dry run without the audio knows {', '.join(SHAPES)}, not {name!r}")
    return as_pool(pool, nominal(name), weight)


def load_rows(config: DataConfig, folder: Path | None) -> pa.Table:
    """The rows (`ROWS` and, where a data set knows it, `recorded`) of a run before they are split.

    Raises ValueError for an unknown data set and for what `read_table` rejects.
    """
    rows, incomplete = gather(config, folder)
    for line in incomplete:
        log.warning("%s", line)
    return rows


def gather(config: DataConfig, folder: Path | None) -> tuple[pa.Table, list[str]]:
    """All rows of a run (data set and pools), unchecked, and a line for each wrong count of a published data set."""
    own = find_dataset("data.dataset =", config.dataset)(config, folder)
    tables, named = pools_of(config)
    incomplete = differences(config.dataset, own)
    pools = [load_pool(url, weight, Links.of(config)) for url, weight in tables]
    for pool, weight in named:
        name, _, root = pool.partition(":")
        whole = find_dataset("data.pool_datasets:", name)(pool_config(config, name, root), folder)
        incomplete += differences(name, whole)
        pools.append(as_pool(pool, whole, weight))
    return join([own, *pools]), incomplete


def pools_of(config: DataConfig) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The pool tables and the pool data sets, each with its weight."""
    names = (*config.pool_tables, *config.pool_datasets)
    pools = list(zip(names, config.pool_weights or (1.0,) * len(names), strict=True))
    return pools[: len(config.pool_tables)], pools[len(config.pool_tables) :]


def find_dataset(setting: str, name: str) -> Callable[[DataConfig, Path | None], pa.Table]:
    """The loader of a data set; ValueError for an unknown name."""
    if name not in DATASETS:
        raise ValueError(f"{setting} {name!r} is unknown{nearest(name, DATASETS)}; valid: {', '.join(DATASETS)}")
    return DATASETS[name]


def pool_config(config: DataConfig, name: str, root: str) -> DataConfig:
    """The settings to load a pool data set with."""
    return DataConfig(dataset=name, root=root, max_bad_share=config.max_bad_share)


def as_pool(name: str, rows: pa.Table, weight: float) -> pa.Table:
    """Rows for pre-training only: without labels, and without the clips that their data set evaluates on."""
    kept = rows.filter(pc.invert(evaluated(rows)))
    if not len(kept):
        raise ValueError(f"data.pool_datasets: {name} has only clips to evaluate on, none to train on")
    log.info("%s: %d clips for pre-training, %d held-out clips not used", name, len(kept), len(rows) - len(kept))
    values = {
        "split": pa.repeat("pool", len(kept)),
        "scene_label": pa.nulls(len(kept), pa.string()),
        "weight": pa.repeat(weight, len(kept)),
    }
    for column, value in values.items():
        kept = kept.set_column(kept.schema.get_field_index(column), column, value)
    return kept


def join(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables; where clip_ids of a later table are taken, all of its clip_ids get its number as a prefix."""
    rows = tables[0]
    for number, table in enumerate(tables[1:], start=1):
        clip_id = table["clip_id"]
        while pc.any(pc.is_in(clip_id, value_set=rows["clip_id"])).as_py():
            clip_id = pc.binary_join_element_wise(str(number), clip_id, "/")
        # some data sets have one column more, recorded
        rows = pa.concat_tables([rows, table.set_column(0, "clip_id", clip_id)], promote_options="default")
    return rows
