"""Leaks that a table's metadata reveal: recordings on both sides of a split, and labels guessed by look-ups.

A look-up guesses a clip's label from metadata, without audio. A model may reach the look-up's score on held-out clips
by recognising where and when they were recorded, rather than the scene; a split on which a look-up scores far above
chance says little about new places.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raymae.config import SplitConfig, SplitKind
from raymae.datasets.labels import label_lists
from raymae.datasets.rows import held_out
from raymae.datasets.splits.assign import assign, settings, split_name
from raymae.datasets.splits.groups import unit_codes

COMPARED: tuple[SplitKind, ...] = ("random", "session", "visit", "city_day")
SEEDS = tuple(range(10))
ROUNDS = 200
LOOK_UPS = {
    "nearest_time": "nearest in time, same city",
    "city": "commonest of the city",
    "device": "commonest of the device",
    "commonest": "commonest of all",
}
"""Look-ups by their key in the result, where they are null if a column is missing."""


def audit_splits(rows: pa.Table, config: SplitConfig, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Audit the configured split, then splits of other kinds of the same rows (mean over `seeds`).

    `rows` are those of a data set before splitting (`splits.assign`). Each dict: split, kind, seeds, in_turn
    (`left_out_in_turn`) and held_out (the result of `audit`); kinds that need a missing column are left out.
    """
    given = assign(rows, config)
    found: list[dict[str, Any]] = [
        {"split": split_name(config), "kind": settings(config).kind, "seeds": 1, "in_turn": None}
        | {"held_out": audit(given)}
    ]
    for kind in COMPARED:
        other = SplitConfig(kind=kind)
        try:
            with _without_log():
                audited = [audit(assign(rows, replace(other, seed=seed))) for seed in seeds]
        except ValueError:  # a column is missing that this kind needs
            continue
        split = split_name(other).replace("seed 0", f"{len(seeds)} seeds")
        in_turn = None if kind == "random" else left_out_in_turn(rows, kind)
        found.append(
            {"split": split, "kind": kind, "seeds": len(seeds), "in_turn": in_turn, "held_out": average(audited)}
        )
    return found


@contextmanager
def _without_log() -> Iterator[None]:
    """Disable the log of `splits.assign`, for splits that are made only for comparison."""
    log = logging.getLogger("raymae.datasets.splits.assign")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def audit(rows: pa.Table) -> dict[str, dict[str, Any]]:
    """Audit rows with their final splits; returns clips, sibling_share, same_file_share and look_ups by held-out split.

    sibling_share: share of the labelled held-out clips whose group has a clip in train or pool, None where no group is
    known; same_file_share: share whose file has the name (without folder) and size of a file there; look_ups: accuracy
    of each look-up in the labelled clips of train.
    """
    trained = rows.filter(pc.is_in(rows["split"], value_set=pa.array(["train", "pool"])))
    labelled = _labelled(trained.filter(pc.equal(trained["split"], "train")))
    found = {}
    for name, clips in held_out(rows).items():
        truth = _labelled(clips)
        guesses = {
            "nearest_time": nearest_in_time(labelled, truth),
            "city": commonest(labelled, truth, "city"),
            "device": commonest(labelled, truth, "device"),
            "commonest": commonest(labelled, truth, None),
        }
        found[name] = {
            "clips": len(clips),
            "sibling_share": _sibling_share(clips, trained),
            "same_file_share": _share(pc.is_in(_file_keys(clips), value_set=pc.drop_null(_file_keys(trained)))),
            "look_ups": {key: None if guess is None else _score(guess, truth) for key, guess in guesses.items()},
        }
    return found


def _sibling_share(clips: pa.Table, trained: pa.Table) -> float | None:
    if clips["group"].null_count == len(clips):
        return None
    return _share(pc.is_in(clips["group"], value_set=pc.drop_null(trained["group"])))


def _share(mask: pa.ChunkedArray) -> float:
    return float(np.mean(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))) if len(mask) else 0.0


def _file_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Name and size of every file (n,); null where it is missing or empty."""
    names = pc.replace_substring_regex(rows["path"], r"^.*[/\\]", "")
    keys = pc.binary_join_element_wise(names, pc.cast(rows["size"], pa.string()), " ")
    return pc.if_else(pc.greater(rows["size"], 0), keys, pa.scalar(None, pa.string()))


def _labelled(rows: pa.Table) -> pd.DataFrame:
    """The labelled clips with city, device, recorded and label, the tuple of their classes."""
    rows = rows.filter(pc.is_valid(rows["scene_label"]))
    columns = [name for name in ("city", "device", "recorded") if name in rows.column_names]
    frame = rows.select(columns).to_pandas().reindex(columns=["city", "device", "recorded"])
    frame["label"] = [tuple(sorted(set(parts))) for parts in label_lists(rows["scene_label"], "multi").to_pylist()]
    return frame


def _score(guess: pd.Series, truth: pd.DataFrame) -> float:
    """Share of clips whose classes are guessed exactly; a missing guess counts as wrong."""
    return float(np.mean([one == other for one, other in zip(guess, truth["label"], strict=True)]))


def commonest(train: pd.DataFrame, test: pd.DataFrame, column: str | None) -> pd.Series | None:
    """The commonest label of the training clips with the same value in `column`, or (None) of all training clips.

    None where no held-out clip has a value, or without training clips.
    """
    if not len(train):
        return None
    if column is None:
        return pd.Series([_mode(train["label"])] * len(test), index=test.index)
    if test[column].isna().all():
        return None
    return test[column].map(train.groupby(column)["label"].agg(_mode))


def _mode(labels: pd.Series) -> Any:
    """The commonest label, the first by name among equals."""
    counts = labels.value_counts()
    return min(counts.index[counts == counts.max()])


def nearest_in_time(train: pd.DataFrame, test: pd.DataFrame) -> pd.Series | None:
    """The label of the training clip of the same city whose recording began nearest; None where times are unknown."""
    known = train.dropna(subset=["city", "recorded"])
    asked = test.dropna(subset=["city", "recorded"])
    if not len(asked):
        return None
    guess = np.full(len(test), np.nan, object)
    for city, clips in asked.groupby("city"):
        there = known[known["city"] == city].sort_values("recorded", kind="stable")
        if not len(there):
            continue
        times, wanted = there["recorded"].to_numpy(), clips["recorded"].to_numpy()
        after = np.searchsorted(times, wanted).clip(0, len(times) - 1)
        before = (after - 1).clip(0)
        nearest = np.where(wanted - times[before] < np.abs(times[after] - wanted), before, after)
        guess[test.index.get_indexer(clips.index)] = there["label"].to_numpy()[nearest]
    return pd.Series(guess, index=test.index, dtype=object)


def left_out_in_turn(rows: pa.Table, kind: SplitKind) -> float | None:
    """Accuracy of the nearest in time over all labelled clips, each looked up without its whole unit of `kind`.

    Involves no random draw. A look-up stays within a city, so one unit of every city is left out at a time (several if
    there are more than `ROUNDS`). None where times are unknown.
    """
    clips = _labelled(rows)
    clips["unit"] = unit_codes(rows, kind)[pc.is_valid(rows["scene_label"]).to_numpy(zero_copy_only=False)]
    dated = clips.dropna(subset=["city", "recorded"])
    if not len(dated):
        return None
    rounds = dated.groupby("city")["unit"].rank("dense").astype(int) % ROUNDS
    right = 0.0
    for _, asked in dated.groupby(rounds):
        guess = nearest_in_time(clips[~clips["unit"].isin(asked["unit"])], asked)
        assert guess is not None
        right += _score(guess, asked) * len(asked)
    return right / len(clips)


def average(audited: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Means of the results of `audit` over several seeds, and `sd`, the standard deviations of the look-ups."""
    found = {}
    for name in sorted({name for one in audited for name in one}, key=lambda name: (name != "val", name)):
        those = [one[name] for one in audited if name in one]
        values = {key: [one["look_ups"][key] for one in those if one["look_ups"][key] is not None] for key in LOOK_UPS}
        shares = {key: _mean([one[key] for one in those]) for key in ("clips", "sibling_share", "same_file_share")}
        found[name] = shares | {
            "look_ups": {key: _mean(scores) for key, scores in values.items()},
            "sd": {key: float(np.std(scores)) if scores else None for key, scores in values.items()},
        }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
