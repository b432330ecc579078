"""The share of held-out clips with a sibling in training, from the share that seems to have one. Numbers only.

A detector finds a sibling for a share p of the clips: for `recall` of those that have one, and, wrongly, for a `null`
rate of the others. So p = s * recall + (1 - s) * null, and the share s with a sibling is (p - null) / (recall - null).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

LEVEL = 0.95
MIN_CLIPS = 50
"""Fewest clips for an estimate, and for a null rate or recall: the interval of fewer says nothing."""
MIN_CONTRAST = 0.1
"""Smallest difference between recall and null rate at which a share is estimated."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of clips, and how sure it is."""

    share: float
    clips: int
    units: int
    """Number of recordings that the clips are from: clips of one recording aren't independent."""

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval, with the recordings in place of the clips."""
        hits, tail = self.share * self.units, (1 - LEVEL) / 2
        low = beta.ppf(tail, hits, self.units - hits + 1) if hits > 0 else 0.0
        high = beta.ppf(1 - tail, hits + 1, self.units - hits) if hits < self.units else 1.0
        return float(low), float(high)

    def among(self, ratio: float) -> Rate:
        """The rate among `ratio` times as many candidates: each gives a match by itself."""
        return Rate(share=1 - (1 - self.share) ** ratio, clips=self.clips, units=self.units)


def reason_against(paired: Rate, null: Rate | None, recall: Rate) -> str | None:
    """Why no share can be estimated; None if it can."""
    if paired.clips < MIN_CLIPS:
        return f"it has {paired.clips} clips, and an estimate needs {MIN_CLIPS}: pairs among few clips may be chance"
    if null is None:
        return (
            f"the rate of false pairs is unknown: it needs {MIN_CLIPS} labelled training clips with a group, and as "
            "many of their class from other groups"
        )
    if recall.share - null.share < MIN_CONTRAST:
        return (
            f"recordings of this table can't be told apart by ear: {null.share:.0%} of clips without a sibling seem to "
            f"have one, and {recall.share:.0%} of those with one"
        )
    return None


def sibling_share(paired: Rate, null: Rate, recall: Rate) -> tuple[float, tuple[float, float]]:
    """The share of clips with a sibling and its interval, within [0, 1].

    The interval of the difference of two rates is Newcombe's (1998, method 10), with `interval` of either; its ends are
    divided by the ends of the recall's. A null rate above the paired share can't be right (groups finer than
    recordings): the paired share takes its place.
    """
    false = min(null.share, paired.share)
    difference = paired.share - false
    (low, high), (null_low, null_high) = paired.interval, null.interval
    below = np.hypot(paired.share - low, null_high - null.share)
    above = np.hypot(high - paired.share, false - min(false, null_low))
    fewest, most = (max(end - false, 1e-9) for end in recall.interval)
    share = difference / (recall.share - false)
    found = np.clip([share, (difference - below) / most, (difference + above) / fewest], 0, 1).tolist()
    return found[0], (found[1], found[2])
