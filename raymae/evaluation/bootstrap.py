"""Bootstrap intervals and permutation tests over whole groups, on numpy arrays.

The clips of one recording tend to be right or wrong together. So whole groups are resampled (bootstrap) or exchanged
between two models (permutation); single clips would give far too narrow intervals and far too small p-values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MIN_GROUPS = 5
"""Fewest groups of each class for an interval."""
RESAMPLES = 1000
PERMUTATIONS = 10_000
LEVEL = 0.95
CHUNK = 100
"""Resamples held in memory at once."""


def group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Integer codes (n,) of the clips' groups, from 0."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def group_totals(group: NDArray[np.integer], values: NDArray[np.number]) -> Values:
    """Sums (G, K) by group of the clips' values (n, K)."""
    totals = np.zeros((int(group.max()) + 1, values.shape[1]))
    np.add.at(totals, group, values)
    return totals


def enough_groups(labels: NDArray[np.integer], group: NDArray[np.integer]) -> bool:
    """Whether every class of `labels` (n,) has at least `MIN_GROUPS` groups."""
    pairs = np.unique(np.stack([labels, group]), axis=1)
    return bool(np.unique(pairs[0], return_counts=True)[1].min() >= MIN_GROUPS)


def drawn_weights(n_groups: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each resample draws each group, (resamples, G); every row sums to G."""
    draws = np.random.default_rng(seed).integers(n_groups, size=(resamples, n_groups))
    return np.stack([np.bincount(draw, minlength=n_groups) for draw in draws])


def bootstrap(
    totals: Values,
    statistic: Callable[[Values], Values],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Values:
    """Percentile interval (2, M), lower ends first, of M statistics of group totals (G, K).

    `statistic` maps the sums over the drawn groups, (R, K), to M values each, (R, M), NaN where there is no clip to
    compute one from; NaN is ignored.
    """
    drawn = []
    for start in range(0, resamples, CHUNK):
        weights = drawn_weights(len(totals), min(CHUNK, resamples - start), seed + start)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(statistic(weights @ totals))
    return np.nanquantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)


def signs(n_groups: int, permutations: int, seed: int) -> NDArray[np.int8]:
    """Random signs (permutations, G): -1 where the two models exchange a group's clips, else +1."""
    return np.random.default_rng(seed).choice(np.array([1, -1], np.int8), size=(permutations, n_groups))


def p_value(observed: float, permuted: Values) -> float:
    """Two-sided p-value of an observed difference among permuted ones; the observed one is counted among them.

    Never 0, and valid for any number of permutations (Phipson & Smyth 2010).
    """
    as_large = np.abs(permuted) >= abs(observed) - 1e-12
    return float((1 + as_large.sum()) / (1 + len(permuted)))
