"""What is drawn from whole groups: bootstrap intervals and permutation tests, on numpy arrays.

The clips of one recording are right or wrong together. So groups are drawn anew (bootstrap) or exchanged between two
models (permutation) as a whole; single clips would give intervals that are far too narrow, and p-values far too small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MIN_GROUPS = 5
"""Fewest groups of each class from which an interval or a p-value is drawn."""
RESAMPLES = 1000
PERMUTATIONS = 10_000
LEVEL = 0.95
CHUNK = 100
"""Drawn sets that are held at once."""


def group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """The number (n,) of each clip's group, from 0 on."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def group_totals(group: NDArray[np.integer], values: NDArray[np.number]) -> Values:
    """Sums (G, K) over the clips of each group of values (n, K)."""
    totals = np.zeros((int(group.max()) + 1, values.shape[1]))
    np.add.at(totals, group, values)
    return totals


def enough_groups(labels: NDArray[np.integer], group: NDArray[np.integer]) -> bool:
    """Whether every class of `labels` (n,) has at least `MIN_GROUPS` groups."""
    pairs = np.unique(np.stack([labels, group]), axis=1)
    return bool(np.unique(pairs[0], return_counts=True)[1].min() >= MIN_GROUPS)


def drawn_weights(n_groups: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each group is drawn, (resamples, G): every row sums to G."""
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
    """Percentile interval (2, M), lower ends first, of a statistic of group sums.

    `statistic` makes M figures of the sums over all drawn groups, (R, K) to (R, M), NaN where one has no clip to be
    computed from; such draws don't count.
    """
    drawn = []
    for start in range(0, resamples, CHUNK):
        weights = drawn_weights(len(totals), min(CHUNK, resamples - start), seed + start)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(statistic(weights @ totals))
    return np.nanquantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)


def signs(n_groups: int, permutations: int, seed: int) -> NDArray[np.int8]:
    """+1 where a group stays with its model, -1 where the two models exchange it, (permutations, G)."""
    return np.random.default_rng(seed).choice(np.array([1, -1], np.int8), size=(permutations, n_groups))


def p_value(observed: float, permuted: Values) -> float:
    """Two-sided p-value of a difference among differences under exchange; the observed one counts among them.

    Never 0, and valid for any number of permutations (Phipson & Smyth 2010).
    """
    as_large = np.abs(permuted) >= abs(observed) - 1e-12
    return float((1 + as_large.sum()) / (1 + len(permuted)))
