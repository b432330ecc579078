"""Random draws keyed by a clip's place in the run: neither workers nor micro-batches change them.

A draw is a hash (SplitMix64) of a seed, the clip's place and what it is for, so that those of a whole batch are
computed at once, ahead of the step and in any process. Without torch: data workers import this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix(*values: int) -> int:
    """64 well-mixed bits of some integers (the SplitMix64 finaliser, chained)."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + _GAMMA & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def hashed(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of each of some integers, by a key."""
    values = values + np.uint64(key)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


@dataclass(frozen=True)
class Draws:
    """The draws of some clips. The same purpose gives the same draws again; another one independent draws."""

    seed: int
    places: NDArray[np.int64]
    """(B,): the clips' places in the run."""
    group: int = 1
    """Clips of a mixing group, which are neighbours: only they are mixed with one another. Divides B."""

    def named(self, name: str) -> Draws:
        """Draws of the same clips that are independent of these."""
        return replace(self, seed=mix(self.seed, *name.encode()))

    def select(self, rows: slice, group: int) -> Draws:
        """The same draws for some of the clips, in other mixing groups."""
        return replace(self, places=self.places[rows], group=group)

    def repeated(self, times: int) -> Draws:
        """Draws of `times` items for each clip, one clip after the other, all independent."""
        if times == 1:
            return self
        places = self.places[:, None] * times + np.arange(times)
        return replace(self.named(f"of {times}"), places=places.ravel(), group=self.group * times)

    def bits(self, purpose: str, count: int) -> NDArray[np.uint64]:
        """(B, count) of 64 random bits."""
        own = hashed(self.places.astype(np.uint64), mix(self.seed, *purpose.encode()))
        return hashed(own[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(_GAMMA), _GAMMA)

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """(B, count), uniform in [0, 1)."""
        return np.asarray((self.bits(purpose, count) >> np.uint64(11)) * 2.0**-53, np.float64)

    def one(self, purpose: str) -> NDArray[np.float64]:
        """(B,), uniform in [0, 1)."""
        return self.uniform(purpose, 1)[:, 0]

    def coins(self, purpose: str, p: float) -> NDArray[np.bool_]:
        """(B,): True with probability `p`."""
        return self.one(purpose) < p

    def group_coins(self, purpose: str, p: float) -> NDArray[np.bool_]:
        """(B,): True with probability `p`, the same for all clips of a mixing group."""
        first = replace(self, places=self.places[:: self.group])
        return np.repeat(first.coins(purpose, p), self.group)

    def integers(self, purpose: str, counts: NDArray[np.integer]) -> NDArray[np.int64]:
        """(B,): uniform from 0 to count - 1 for each of `counts` (B,)."""
        return (self.one(purpose) * counts).astype(np.int64)

    def normal(self, purpose: str, count: int) -> NDArray[np.float64]:
        """(B, count), standard normal."""
        from scipy.special import ndtri

        return np.asarray(ndtri(np.maximum(self.uniform(purpose, count), 2.0**-54)))  # of 0 it is infinite

    def beta(self, purpose: str, alpha: float) -> NDArray[np.float64]:
        """(B,), from Beta(alpha, alpha)."""
        from scipy.special import betaincinv

        return np.asarray(betaincinv(alpha, alpha, self.one(purpose)))

    def partners(self, purpose: str) -> NDArray[np.int64]:
        """(B,): a random permutation of the clips of every mixing group, as indices into the batch."""
        order = self.bits(purpose, 1).reshape(-1, self.group).argsort(1)
        return (order + self.group * np.arange(len(order))[:, None]).ravel()
