"""Units that a split keeps whole (sessions, visits, days), and their stratified assignment to splits.

Everything is drawn from sorted names, so the order of a table's rows doesn't matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from raymae.config import SplitKind
from raymae.datasets.labels import class_set, target_matrix
from raymae.datasets.rows import group_ids

Codes = NDArray[np.int64]
"""A number per clip (n,), equal for clips that belong together."""

VISIT_GAP = np.timedelta64(30, "m")
"""Longest pause between the starts of two recordings of one visit to a city."""


def codes(names: Sequence[str] | pd.Series) -> Codes:
    """Integer codes of names, in the order of the sorted names."""
    return np.asarray(pd.factorize(np.asarray(names, dtype=object), sort=True)[0], np.int64)


def group_codes(rows: pa.Table) -> Codes:
    """The group of every clip; a clip without one is a group of its own, also where a group is called like the clip."""
    columns = {"group": ("group", rows["group"]), "clip_id": ("clip", rows["clip_id"])}
    prefixed = {name: pc.binary_join_element_wise(prefix, ids, " ") for name, (prefix, ids) in columns.items()}
    return codes(group_ids(pa.table(prefixed)).to_pandas())


def unit_codes(rows: pa.Table, kind: SplitKind) -> Codes:
    """The unit of every clip that a split of a kind keeps whole: at least its group (its own with random).

    Raises ValueError where the table doesn't have what the kind needs: group; for visit and city_day, city and
    recorded.
    """
    if kind == "random":
        return codes(rows["clip_id"].to_pandas())
    groups = group_codes(rows)
    if kind in ("visit", "city_day"):
        for name in ("city", "recorded"):
            if name not in rows.column_names or rows[name].null_count == len(rows):
                raise ValueError(
                    f"data.split.kind = {kind} needs to know where and when clips were recorded, and no clip of this "
                    f"table has a value in column {name}; session needs only column group"
                )
        return merged(groups, visit_codes(rows) if kind == "visit" else day_codes(rows))
    if kind in ("session", "device") and rows["group"].null_count == len(rows):
        raise ValueError(
            f"data.split.kind = {kind} needs to know which clips were cut from one recording, and no clip of this "
            "table has a value in column group"
        )
    return groups


def visit_codes(rows: pa.Table) -> Codes:
    """The visit of every clip: recordings in one city, chained while their starts are at most `VISIT_GAP` apart.

    A clip of unknown city or time is a visit of its own.
    """
    known = _dated(rows)
    order = np.lexsort((known["recorded"], known["city"]))
    city, time = known["city"].to_numpy()[order], known["recorded"].to_numpy()[order]
    begins = np.ones(len(known), bool)
    begins[1:] = (city[1:] != city[:-1]) | (np.diff(time) > VISIT_GAP)
    visits = np.empty(len(known), np.int64)
    visits[order] = np.cumsum(begins)
    return _spread(known, visits, len(rows))


def day_codes(rows: pa.Table) -> Codes:
    """The day in a city of every clip; a clip of unknown city or time has one of its own."""
    known = _dated(rows)
    return _spread(known, codes(known["city"] + known["recorded"].dt.strftime(" %Y-%m-%d")), len(rows))


def _dated(rows: pa.Table) -> pd.DataFrame:
    """City and time of the clips that have both; the index is the clip's row."""
    frame: pd.DataFrame = rows.select(["city", "recorded"]).to_pandas()
    return frame.dropna()


def _spread(known: pd.DataFrame, values: Codes, count: int) -> Codes:
    """`values` at the rows of `known`, and a unique number at every other row (count,)."""
    spread = np.arange(count) + values.max(initial=0) + 1
    spread[known.index.to_numpy()] = values
    return spread


def merged(first: Codes, second: Codes) -> Codes:
    """The finest partition that keeps the parts of both `first` and `second` whole."""
    left, right = codes_of(first), codes_of(second)
    count = int(left.max(initial=-1)) + 1
    size = count + int(right.max(initial=-1)) + 1
    links = coo_array((np.ones(len(left), np.int8), (left, right + count)), shape=(size, size))
    return np.asarray(connected_components(links, directed=False)[1][left], np.int64)


def codes_of(values: Codes) -> Codes:
    """The same parts, numbered from 0 without gaps."""
    return np.asarray(np.unique(values, return_inverse=True)[1], np.int64)


def class_counts(scene_label: pa.ChunkedArray, units: Codes, count: int) -> csr_array:
    """Labelled clips (count, C) of each unit and class, from labels (n,) and units (n,) of some clips."""
    labels = target_matrix(scene_label, class_set(scene_label, "multi"), "multi")
    ones = np.ones(len(units), np.float32)
    return csr_array((ones, (units, np.arange(len(units)))), shape=(count, len(units))) @ labels


def deal(counts: csr_array, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the units (U,) to hold out, about `share` of every class's clips, from clips by unit and class (U, C).

    Iterative stratification (Sechidis et al. 2011): the rarest class first, its units in random order, each to the side
    that brings the class nearer to its share. A class of two units or more has one on either side if the classes before
    it leave a choice; a class of a single unit is not held out.
    """
    held, dealt = np.zeros(counts.shape[0], bool), np.zeros(counts.shape[0], bool)
    rank = rng.permutation(counts.shape[0])
    by_class = counts.tocsc()
    wanted = share * counts.sum(axis=0)
    got = np.zeros(counts.shape[1])
    for column in np.argsort(np.diff(by_class.indptr), kind="stable"):
        inside = slice(by_class.indptr[column], by_class.indptr[column + 1])
        members = by_class.indices[inside]
        clips = dict(zip(members.tolist(), by_class.data[inside].tolist(), strict=True))
        trained, tested = bool((dealt & ~held)[members].any()), bool(held[members].any())
        left = members[~dealt[members]]
        left = left[np.argsort(rank[left])].tolist()
        for unit in left:
            nearer = clips[unit] < 2 * (wanted[column] - got[column])
            last = unit == left[-1]
            out = trained and not tested if last and not (trained and tested) else nearer
            held[unit], dealt[unit] = out, True
            trained, tested = trained or not out, tested or out
            if out:
                row = slice(counts.indptr[unit], counts.indptr[unit + 1])
                got[counts.indices[row]] += counts.data[row]
    return held


def keep(counts: csr_array, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose the groups (G,) that keep their labels: about `share` of all and of each class, at least one per class.

    `counts` (G, C) holds labelled clips. The groups of a smaller share are a subset of those of a larger one.
    """
    rank = rng.permutation(counts.shape[0])
    quantile = np.full(counts.shape[0], 1.0)
    by_class = counts.tocsc()
    for start, stop in zip(by_class.indptr[:-1], by_class.indptr[1:], strict=True):
        members = by_class.indices[start:stop]
        members = members[np.argsort(rank[members])]
        quantile[members] = np.minimum(quantile[members], np.arange(len(members)) / max(1, len(members)))
    order = np.lexsort((rank, quantile))
    kept = np.zeros(counts.shape[0], bool)
    kept[order[: max(round(share * len(order)), int((quantile == 0).sum()))]] = True
    return kept
