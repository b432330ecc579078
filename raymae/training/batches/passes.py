"""The forward passes of a step: which of a rank's mixing groups are computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.training.batches.windows import Group


@dataclass(frozen=True)
class Clips:
    """The clips of a forward pass, one mixing group after the other."""

    rows: Rows
    """(B,): rows of the store."""
    places: Rows
    """(B,): places in the run."""
    values: list[NDArray[Any]]
    """B times a log-mel (T, F) float16, or a waveform (samples,) float32."""
    valid: NDArray[np.int64]
    """(B,): frames or samples before the padding."""
    weight: NDArray[np.float32]
    """(B,): 1, or 0 for clips that only fill the pass up."""
    group_size: int

    def take(self, indices: NDArray[np.int64]) -> Clips:
        """Some of the clips, in another order."""
        return Clips(
            self.rows[indices],
            self.places[indices],
            [self.values[index] for index in indices],
            self.valid[indices],
            self.weight[indices],
            self.group_size,
        )


@dataclass(frozen=True)
class Passes:
    """How the ranks divide the groups of a step into forward passes."""

    most: int
    """Most groups of a pass."""
    largest: int
    """Groups of the rank with the most."""
    same_size: bool = False
    """Whether all passes have the same number of groups, as a compiled model wants it: groups with weight 0 fill up."""
    same_number: bool = False
    """Whether all ranks run the same number of passes, as collectives within a pass need it: of weight 0 if need be."""

    @property
    def number(self) -> int:
        """Passes of the rank with the most groups."""
        return -(-self.largest // self.most)

    @property
    def size(self) -> int:
        """Groups of a pass."""
        return -(-self.largest // self.number)

    def divide(self, own: int) -> list[tuple[list[int], int]]:
        """The passes of a rank with `own` groups: the numbers of their groups, of which the first so many count."""
        found = [list(range(start, min(start + self.size, own))) for start in range(0, own, self.size)]
        passes = [(groups, len(groups)) for groups in found]
        if self.same_number:
            passes += [([0], 0)] * (self.number - len(passes))
        if self.same_size:
            passes = [(groups + [0] * (self.size - len(groups)), count) for groups, count in passes]
        return passes

    def clips(self, groups: Sequence[Group]) -> list[Clips]:
        """The clips of every pass over a rank's groups of a step."""
        return [_joined([groups[number] for number in numbers], count) for numbers, count in self.divide(len(groups))]


def _joined(groups: Sequence[Group], counted: int) -> Clips:
    size = len(groups[0].rows)
    return Clips(
        np.concatenate([group.rows for group in groups]),
        np.concatenate([group.place + np.arange(size) for group in groups]),
        [clip for group in groups for clip in group.values],
        np.concatenate([group.valid for group in groups]).astype(np.int64),
        np.repeat(np.arange(len(groups)) < counted, size).astype(np.float32),
        size,
    )
