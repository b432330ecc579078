"""Assign clips to splits that keep every recording whole: drawn by settings or read from a file.

`assign` guarantees that val and test share no group with train and pool (`checks.check_groups` verifies it before
anything runs). Unlabelled siblings (clips of the same group) of held-out clips are therefore left out, or used for
pre-training with `transductive`, which is then part of the split's name. Only `random` leaks, and its name says so.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config import SplitConfig, nearest, redact
from raymae.datasets.labels import class_set, label_lists
from raymae.datasets.splits.groups import class_counts, codes_of, deal, group_codes, keep, unit_codes
from raymae.datasets.splits.split_file import NOTE, read_split, settings, split_name, table_hash, write_split

__all__ = ["assign", "settings", "split_name", "write_split"]

log = logging.getLogger(__name__)

VAL_SHARE = 0.1
"""Default `val_share` of a drawn split."""
LEFT_OUT, SIBLING = "left out", "sibling"
"""Placeholders for a split name while the split is made."""

Names = NDArray[np.object_]


def assign(rows: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows that `config` uses, with their split and scene_label (null where labels are hidden).

    `rows` has clip_id, scene_label, city, device, group, split and, where known, recorded (timestamps). Clips of split
    pool stay in it; unlabelled clips of test… are to be predicted and stay there, too. Raises ValueError for missing
    columns that the kind of split needs, for unknown cities and devices, and for a split file that doesn't fit.
    """
    if config == SplitConfig():
        return rows
    fit = table_hash(rows)
    split, hidden = _from_file(rows, config, fit) if config.file else _drawn(rows, config)
    siblings = split == SIBLING
    split[siblings] = "pool" if settings(config).transductive else LEFT_OUT
    hidden |= split == "pool"
    if siblings.any():
        log.info("split %s: %s", split_name(config), _siblings_note(rows, siblings, config))
    rows = _hide(rows, hidden).set_column(rows.column_names.index("split"), "split", pa.array(split, pa.string()))
    used = rows.filter(pc.not_equal(rows["split"], LEFT_OUT))
    if config.labelled_share:
        used = _thin(used, config)
    used = _scorable(used, config)
    _warn_of_missing(used, config)
    note = {"table": fit, "left_out": len(rows) - len(used)}
    return used.replace_schema_metadata({**(rows.schema.metadata or {}), NOTE: json.dumps(note).encode()})


# Drawing ------------------------------------------------------------------------------------------------------------


def _drawn(rows: pa.Table, config: SplitConfig) -> tuple[Names, NDArray[np.bool_]]:
    """The split of every row (n,), or LEFT_OUT or SIBLING, and the mask (n,) of hidden labels (none)."""
    given = np.asarray(rows["split"].to_pylist(), dtype=object)
    labelled = pc.is_valid(rows["scene_label"]).to_numpy(zero_copy_only=False)
    labelled &= given != "pool"
    split = given.copy()
    groups = unit_codes(rows, "random") if config.kind == "random" else group_codes(rows)
    if config.kind != "table":
        predicted = np.array([name.startswith("test") for name in given], bool) & ~labelled
        split[(given != "pool") & ~predicted] = "train"
        _hold_out(split, rows, config, labelled, predicted)
        _leave(split, np.isin(groups, groups[predicted]) & ~predicted & np.isin(split, ("train", "pool")), labelled)
    elif config.val_share is not None and (given == "val").any():
        raise ValueError(
            "data.split.val_share has no effect on data.split.kind = table: the table has a split val of its own"
        )
    share = VAL_SHARE if config.val_share is None and config.kind != "table" else config.val_share
    if share:
        _draw_val(split, rows, config, groups, labelled, share)
    return split, np.zeros(len(rows), bool)


def _hold_out(
    split: Names, rows: pa.Table, config: SplitConfig, labelled: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> None:
    """Write test… into `split` (n,), and LEFT_OUT or SIBLING for the other clips of held-out units."""
    units = unit_codes(rows, config.kind)
    held = _held_out(rows, config) & ~predicted
    if config.kind == "city":
        inside = np.isin(units, units[held])
        split[held & labelled] = "test"
    else:
        tested = _deal(rows, units, labelled, config.test_share, _rng(config, "test"))
        inside = tested & ~predicted
        seen, unseen = ("test_seen", "test_unseen") if config.kind == "device" else ("test", "test")
        split[inside & labelled & ~held] = seen
        split[inside & labelled & held] = unseen
    rest = (inside | held) & np.isin(split, ("train", "pool"))
    _leave(split, rest, labelled)


def _leave(split: Names, rest: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> None:
    """Mark rows that are neither trained on nor scored: LEFT_OUT if labelled, SIBLING (usable as pool) if not."""
    split[rest] = np.where(labelled[rest], LEFT_OUT, SIBLING)


def _held_out(rows: pa.Table, config: SplitConfig) -> NDArray[np.bool_]:
    """Mask (n,) of the clips of held-out cities or devices; ValueError for one that is not in the table."""
    if config.kind not in ("city", "device"):
        return np.zeros(len(rows), bool)
    known = sorted(name for name in pc.unique(rows[config.kind]).to_pylist() if name is not None)
    unknown = [name for name in config.held_out if name not in known]
    if unknown:
        raise ValueError(
            f"data.split.held_out = {', '.join(unknown)}: no clip has it in column {config.kind}"
            f"{nearest(unknown[0], known)}; known are "
            f"{', '.join(known) or 'none'}"
        )
    values = pa.array(config.held_out, pa.string())
    return np.asarray(pc.is_in(rows[config.kind], value_set=values).to_numpy(zero_copy_only=False))


def _deal(
    rows: pa.Table, units: NDArray[np.int64], chosen: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Mask (n,) of all rows of held-out units, drawn so that about `share` of the `chosen` clips are held out."""
    numbers = np.flatnonzero(chosen)
    counts = class_counts(rows["scene_label"].take(numbers), units[numbers], int(units.max(initial=-1)) + 1)
    return deal(counts, share, rng)[units]


def _draw_val(
    split: Names,
    rows: pa.Table,
    config: SplitConfig,
    groups: NDArray[np.int64],
    labelled: NDArray[np.bool_],
    share: float,
) -> None:
    """Write val into `split` (n,): groups of train with `share` of all labelled clips; their siblings leave train."""
    trained = labelled & (split == "train")
    tested = _deal(rows, groups, trained, min(0.5, share * labelled.sum() / max(1, trained.sum())), _rng(config, "val"))
    split[tested & trained] = "val"
    _leave(split, tested & np.isin(split, ("train", "pool")), labelled)


def _thin(rows: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows with labels on only `labelled_share` of the labelled training groups."""
    assert config.labelled_share is not None
    trained = pc.and_(pc.equal(rows["split"], "train"), pc.is_valid(rows["scene_label"]))
    numbers = np.flatnonzero(trained.to_numpy(zero_copy_only=False))
    random = settings(config).kind == "random"
    groups = codes_of((unit_codes(rows, "random") if random else group_codes(rows))[numbers])
    counts = class_counts(rows["scene_label"].take(numbers), groups, int(groups.max(initial=-1)) + 1)
    hidden = np.zeros(len(rows), bool)
    hidden[numbers] = ~keep(counts, config.labelled_share, _rng(config, "labels"))[groups]
    return _hide(rows, hidden)


def _hide(rows: pa.Table, hidden: NDArray[np.bool_]) -> pa.Table:
    """The rows with scene_label null where `hidden` (n,)."""
    labels = pc.if_else(pa.array(hidden), pa.scalar(None, pa.string()), rows["scene_label"])
    return rows.set_column(rows.column_names.index("scene_label"), "scene_label", labels)


def _rng(config: SplitConfig, purpose: str) -> np.random.Generator:
    return np.random.default_rng([config.seed, *purpose.encode()])


# From a file ----------------------------------------------------------------------------------------------------------


def _from_file(rows: pa.Table, config: SplitConfig, fit: str) -> tuple[Names, NDArray[np.bool_]]:
    """The split of every row (n,) and the mask (n,) of hidden labels, from a split file.

    Raises ValueError where the file was made for other clips.
    """
    assert config.file is not None
    name, table = redact(config.file), read_split(config.file, rows, fit)
    place = pc.index_in(rows["clip_id"], value_set=table["clip_id"])
    given, named = (
        np.asarray(rows["split"].to_pylist(), dtype=object),
        pc.is_valid(place).to_numpy(zero_copy_only=False),
    )
    split = np.asarray(pc.fill_null(table["split"].take(place), LEFT_OUT).to_pylist(), dtype=object)
    used = settings(config)
    units = unit_codes(rows, used.kind)
    tested = np.array([one == "val" or one.startswith("test") for one in split], bool)
    new = ~named & (given == "pool")  # pool clips of tables that the file was made without
    split[new] = np.where(np.isin(units, units[tested]) | _held_out(rows, used), SIBLING, "pool")[new]
    labelled = pc.fill_null(table["labelled"].take(place), True)
    unlabelled_here = pc.and_(pc.is_valid(place), pc.and_(labelled, pc.is_null(rows["scene_label"])))
    for row in rows.filter(unlabelled_here).slice(0, 1).to_pylist():
        raise ValueError(f"data.split.file {name} counts {row['clip_id']} as labelled; here it has no scene_label")
    return split, ~np.asarray(labelled.to_numpy(zero_copy_only=False))


# Log messages ---------------------------------------------------------------------------------------------------------


def _siblings_note(rows: pa.Table, siblings: NDArray[np.bool_], config: SplitConfig) -> str:
    use = "are used for pre-training (transductive)" if settings(config).transductive else "are left out"
    groups = pc.count_distinct(rows["group"].filter(pa.array(siblings))).as_py()
    return f"{siblings.sum()} unlabelled clips of {groups} groups {use}, as siblings of held-out clips"


def _scorable(rows: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows without held-out clips of a class that has no training clip (if only one city has it); logs them."""
    labelled = pc.is_valid(rows["scene_label"])
    train_classes = class_set(rows.filter(pc.and_(labelled, pc.equal(rows["split"], "train")))["scene_label"], "multi")
    lists = label_lists(rows["scene_label"], "multi")
    unknown = pc.invert(pc.is_in(lists.flatten(), value_set=pa.array(train_classes, pa.string())))
    lost = np.unique(pc.list_parent_indices(lists).filter(unknown).to_numpy())
    if not train_classes or not len(lost):
        return rows
    names = sorted(pc.unique(lists.flatten().filter(unknown)).to_pylist())
    log.warning(
        "split %s: %d held-out clips of %s are left out: training has no clip of these classes",
        split_name(config), len(lost), ", ".join(names),
    )  # fmt: skip
    kept = np.ones(len(rows), bool)
    kept[lost] = False
    return rows.filter(pa.array(kept))


def _warn_of_missing(rows: pa.Table, config: SplitConfig) -> None:
    """Log held-out splits without a clip of some training class, and the number of clips without a group."""
    names = {name: classes for name, classes in classes_by_split(rows).items() if classes}
    for split, classes in sorted(names.items()):
        missing = sorted(names.get("train", set()) - classes)
        if missing and (split == "val" or split.startswith("test")):
            log.warning(
                "split %s: %s has no clip of %s; its scores are means over the other classes",
                split_name(config), split, ", ".join(missing),
            )  # fmt: skip
    alone = pc.sum(pc.and_(pc.is_null(rows["group"]), pc.not_equal(rows["split"], "pool"))).as_py()
    if alone and settings(config).kind != "random":
        log.warning("split %s: %d clips have no group and were assigned one by one", split_name(config), alone)


def classes_by_split(rows: pa.Table) -> dict[str, set[str]]:
    """The classes of the labelled clips, by split."""
    return {
        name: set(class_set(rows.filter(pc.equal(rows["split"], name))["scene_label"], "multi"))
        for name in pc.unique(rows["split"]).to_pylist()
    }
