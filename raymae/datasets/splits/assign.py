"""Which clips train and which evaluate: splits that cut no recording apart, drawn or read from a file.

`assign` gives the clips of a table their splits. What it promises: val and test share no group with train and pool
(`datasets.check_groups` looks again before anything runs). Unlabelled siblings of held-out clips are therefore left
out, or with `transductive`, which the split's name then says, serve pre-training. Only `random` leaks, and is called so
wherever its name stands.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.config import SplitConfig, redact
from raymae.datasets.labels import class_set, label_lists
from raymae.datasets.splits.groups import class_counts, codes_of, deal, group_codes, keep, unit_codes
from raymae.datasets.splits.split_file import NOTE, read_split, settings, split_name, table_hash, write_split

__all__ = ["assign", "settings", "split_name", "write_split"]

log = logging.getLogger(__name__)

VAL_SHARE = 0.1
"""Of a drawn split whose `val_share` isn't given."""
LEFT_OUT, SIBLING = "left out", "sibling"
"""What stands in place of a split while it is made."""

Names = NDArray[np.object_]


def assign(rows: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows that take part, their split and scene_label (null where labels are hidden) as `config` says.

    `rows` has clip_id, scene_label, city, device, group, split and, where known, recorded (timestamps). What it calls
    pool stays so; unlabelled clips that it calls test… are to be predicted and stay there too. Raises ValueError for
    columns that the kind of split needs and the table lacks, for unknown cities and devices, and for a split file that
    doesn't fit.
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
    taken = rows.filter(pc.not_equal(rows["split"], LEFT_OUT))
    if config.labelled_share:
        taken = _thin(taken, config)
    taken = _scorable(taken, config)
    _name_missing(taken, config)
    note = {"table": fit, "left_out": len(rows) - len(taken)}
    return taken.replace_schema_metadata({**(rows.schema.metadata or {}), NOTE: json.dumps(note).encode()})


# Drawing ------------------------------------------------------------------------------------------------------------


def _drawn(rows: pa.Table, config: SplitConfig) -> tuple[Names, NDArray[np.bool_]]:
    """The split of every row, or LEFT_OUT or SIBLING, and which labels are hidden."""
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
            "data.split.val_share is of no use to data.split.kind = table: the table has a split val of its own"
        )
    share = VAL_SHARE if config.val_share is None and config.kind != "table" else config.val_share
    if share:
        _draw_val(split, rows, config, groups, labelled, share)
    return split, np.zeros(len(rows), bool)


def _hold_out(
    split: Names, rows: pa.Table, config: SplitConfig, labelled: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> None:
    """Write test… into `split` (n,), and what happens to the siblings."""
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
    """Rows that are neither trained on nor scored: only unlabelled ones may yet serve as siblings."""
    split[rest] = np.where(labelled[rest], LEFT_OUT, SIBLING)


def _held_out(rows: pa.Table, config: SplitConfig) -> NDArray[np.bool_]:
    """The clips of the cities or devices that are held out; ValueError for one that the table doesn't know."""
    if config.kind not in ("city", "device"):
        return np.zeros(len(rows), bool)
    known = sorted(name for name in pc.unique(rows[config.kind]).to_pylist() if name is not None)
    unknown = [name for name in config.held_out if name not in known]
    if unknown:
        raise ValueError(
            f"data.split.held_out = {', '.join(unknown)}: no clip has it in column {config.kind}; known are "
            f"{', '.join(known) or 'none'}"
        )
    values = pa.array(config.held_out, pa.string())
    return np.asarray(pc.is_in(rows[config.kind], value_set=values).to_numpy(zero_copy_only=False))


def _deal(
    rows: pa.Table, units: NDArray[np.int64], chosen: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """All rows (n,) of the units that are held out, so that `share` of the `chosen` clips are."""
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
    """The rows, with the labels of `labelled_share` of the labelled training groups alone."""
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
    """The rows without some of their labels."""
    labels = pc.if_else(pa.array(hidden), pa.scalar(None, pa.string()), rows["scene_label"])
    return rows.set_column(rows.column_names.index("scene_label"), "scene_label", labels)


def _rng(config: SplitConfig, purpose: str) -> np.random.Generator:
    return np.random.default_rng([config.seed, *purpose.encode()])


# From a file ----------------------------------------------------------------------------------------------------------


def _from_file(rows: pa.Table, config: SplitConfig, fit: str) -> tuple[Names, NDArray[np.bool_]]:
    """The split of every row as the file says, and which labels it hides; ValueError where it was made for others."""
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
    judged = np.array([one == "val" or one.startswith("test") for one in split], bool)
    new = ~named & (given == "pool")  # the file's pool tables may have been others
    split[new] = np.where(np.isin(units, units[judged]) | _held_out(rows, used), SIBLING, "pool")[new]
    labelled = pc.fill_null(table["labelled"].take(place), True)
    lacks = pc.and_(pc.is_valid(place), pc.and_(labelled, pc.is_null(rows["scene_label"])))
    for row in rows.filter(lacks).slice(0, 1).to_pylist():
        raise ValueError(f"data.split.file {name} counts {row['clip_id']} as labelled; here it has no scene_label")
    return split, ~np.asarray(labelled.to_numpy(zero_copy_only=False))


# What is said of it ---------------------------------------------------------------------------------------------------


def _siblings_note(rows: pa.Table, siblings: NDArray[np.bool_], config: SplitConfig) -> str:
    where = "serve pre-training (transductive)" if settings(config).transductive else "are left out"
    groups = pc.count_distinct(rows["group"].filter(pa.array(siblings))).as_py()
    return f"{siblings.sum()} unlabelled clips of {groups} groups {where}, being siblings of held-out clips"


def _scorable(rows: pa.Table, config: SplitConfig) -> pa.Table:
    """The rows without held-out clips of a class that training lacks (a city alone may have it): named in the log."""
    labelled = pc.is_valid(rows["scene_label"])
    taught = class_set(rows.filter(pc.and_(labelled, pc.equal(rows["split"], "train")))["scene_label"], "multi")
    lists = label_lists(rows["scene_label"], "multi")
    unknown = pc.invert(pc.is_in(lists.flatten(), value_set=pa.array(taught, pa.string())))
    lost = np.unique(pc.list_parent_indices(lists).filter(unknown).to_numpy())
    if not taught or not len(lost):
        return rows
    names = sorted(pc.unique(lists.flatten().filter(unknown)).to_pylist())
    log.warning(
        "split %s: %d held-out clips of %s are left out, since no clip of these classes is left to train on",
        split_name(config), len(lost), ", ".join(names),
    )  # fmt: skip
    kept = np.ones(len(rows), bool)
    kept[lost] = False
    return rows.filter(pa.array(kept))


def _name_missing(rows: pa.Table, config: SplitConfig) -> None:
    """Warn of held-out splits that lack some classes of training, and of clips without a group."""
    names = {name: classes for name, classes in classes_by_split(rows).items() if classes}
    for split, classes in sorted(names.items()):
        missing = sorted(names.get("train", set()) - classes)
        if missing and (split == "val" or split.startswith("test")):
            log.warning(
                "split %s: %s has no clip of %s: its scores are means over the other classes",
                split_name(config), split, ", ".join(missing),
            )  # fmt: skip
    alone = pc.sum(pc.and_(pc.is_null(rows["group"]), pc.not_equal(rows["split"], "pool"))).as_py()
    if alone and settings(config).kind != "random":
        log.warning("split %s: %d clips have no group and were split one by one", split_name(config), alone)


def classes_by_split(rows: pa.Table) -> dict[str, set[str]]:
    """The classes that the labelled clips of every split have."""
    return {
        name: set(class_set(rows.filter(pc.equal(rows["split"], name))["scene_label"], "multi"))
        for name in pc.unique(rows["split"]).to_pylist()
    }
