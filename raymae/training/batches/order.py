"""The order of training clips: a pure function of the seed and the position, the same for any number of workers.

The run is one long stream of rows: epoch after epoch, each a fresh permutation of all rows. A *step* is
`global_batch_size` consecutive rows of it, divided into `slots` *mixing groups* of `group_size` clips: what mixes clips
does so within a group, and a group is never divided. A *window*, the unit that is read and sent, holds the groups of
one slot for `window_steps` steps; a *round* is the windows of all slots for the same steps. A rank has some
neighbouring slots of every step, and reads their windows: any number of workers up to `slots` together get the same
groups as a single one, in forward passes of any number of groups. A run that resumes at step s starts with the round
that holds s.

Nothing is stored: the permutation is a Feistel network, so the cost of any part of a stream over 10^9 rows depends on
its own length only. Runs of `chunk` neighbouring rows stay together in the stream and are shuffled within their window,
so that a read touches few pieces of the store.

What that costs in randomness, for batches of 64 from a store in which every 50 neighbours come from one recording, in
mixing groups of 64 / 16 / 8; a `DataLoader` with shuffle=True draws a full permutation, and so do stages with labels,
whose chunk is 1 (`StageSpec.chunk`):

    chunk             recordings      spread of the      pairs that meet again   reads per second from
                      in a batch      class shares       in the next epoch       memory    disk
    full permutation  61              1.0                0.19 %
    1                 61 / 61 / 61    1.0 / 1.0 / 1.0    0.19 / 0.19 / 0.19 %    3,500     2,400
    4                 30 / 52 / 57    2.4 / 1.3 / 1.15   0.9 / 0.23 / 0.20 %     6,400     2,750
    8                 17 / 43 / 52    4.2 / 1.8 / 1.35   1.8 / 0.28 / 0.21 %     7,750     3,200
    32                6 / 22 / 34     13 / 3.9 / 2.3     8.0 / 0.6 / 0.28 %      8,700     3,600

The spread is the variance from batch to batch, in units of a full permutation's: a batch of 64 with spread 4.2 is as
representative of the classes as 15 clips drawn at random. It is close to 1 + (chunk - 1) (group_size - 1) / (n - 1),
with the n = window_steps * group_size clips of a window, as long as a chunk lies within one recording, and 1 if
neighbours have nothing in common. A window has 128 clips in the table and 64 for steps of 512 clips in groups of 8,
whose spread is 1.8 with chunks of 8. Chunks of 1 are a full permutation, on object storage with a request for each
row. Reads: clips of 640 x 256, groups of 64, one process, one window after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import NDArray

from raymae.datasets.rows import Rows
from raymae.features.draws import Draws, hashed, mix

WINDOW_ROWS = 128
"""Most clips of a window, unless a group is larger."""
ROUND_ROWS = 4096
"""Clips of a round, which a single worker holds in memory: 1 GB of clips of 1024 x 128."""
LEAST_STEPS = 4
"""Steps of a round of large steps: with fewer, a group's clips would be neighbours."""


def permute(index: Rows, n: int, key: int) -> Rows:
    """Permute indices below n by the random permutation that `key` selects: a Feistel network with cycle walking."""
    bits = max(1, ceil(((n - 1).bit_length()) / 2))
    low = np.uint64((1 << bits) - 1)
    shift = np.uint64(bits)
    keys = [mix(key, turn) for turn in range(6)]
    result = index.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> shift, result[outside] & low
        for turn_key in keys:
            left, right = right, left ^ (hashed(right, turn_key) & low)
        result[outside] = left << shift | right
        outside = outside[result[outside] >= np.uint64(n)]
    return result.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order of one training run over `rows` (positions in a feature store)."""

    rows: tuple[Rows, ...]
    """The rows of each source."""
    weights: tuple[float, ...]
    """How often an epoch visits each row of a source; 0.5: every other epoch."""
    seed: int
    epochs: float
    global_batch_size: int
    group_size: int
    """Clips of a mixing group."""
    chunk: int = 8
    shifted: bool = False
    """Whether the clips of long recordings begin elsewhere in every epoch (`raymae.training.batches.shifts`)."""

    def __post_init__(self) -> None:
        if not self.rows_per_epoch:
            raise ValueError("there is no clip to train on")

    @property
    def rows_per_epoch(self) -> int:
        """Rows in an epoch."""
        return int(self._bounds[-1])

    @property
    def _bounds(self) -> Rows:
        counts = [round(len(rows) * weight) for rows, weight in zip(self.rows, self.weights, strict=True)]
        return np.cumsum(counts, dtype=np.int64)

    @property
    def steps(self) -> int:
        """Steps of the run. The last batch is filled from the epoch after the last one."""
        return max(1, ceil(self.epochs * self.rows_per_epoch / self.global_batch_size))

    @property
    def slots(self) -> int:
        """Mixing groups of a step."""
        return self.global_batch_size // self.group_size

    @property
    def window_steps(self) -> int:
        """Steps of a round."""
        return max(1, min(WINDOW_ROWS // self.group_size, max(LEAST_STEPS, ROUND_ROWS // self.global_batch_size)))

    @property
    def windows(self) -> int:
        """Windows of the run."""
        return ceil(self.steps / self.window_steps) * self.slots

    def first_window(self, step: int) -> int:
        """The first window of the round that holds `step`."""
        return step // self.window_steps * self.slots

    def round_steps(self, window: int) -> range:
        """The steps that a window has groups for."""
        first = window // self.slots * self.window_steps
        return range(first, min(first + self.window_steps, self.steps))

    def window_positions(self, window: int) -> Rows:
        """Positions in the stream of the rows of a window, in the order in which they are trained on."""
        return self.positions(self.round_steps(window), window % self.slots)

    def positions(self, steps: range, slot: int) -> Rows:
        """Positions in the stream of a slot's rows for the steps of a round, in training order."""
        length = len(steps) * self.group_size
        start = steps.start * self.global_batch_size + slot * length
        positions = np.arange(start, start + length, dtype=np.int64)
        draw = hashed(positions.astype(np.uint64), mix(self.seed, 1))
        return positions[np.lexsort((draw, positions // self.rows_per_epoch))]

    def epochs_at(self, positions: Rows) -> Rows:
        """The epochs of some positions of the stream."""
        return positions // self.rows_per_epoch

    def rows_at(self, positions: Rows) -> Rows:
        """The rows at some positions of the stream."""
        epochs, offsets = np.divmod(positions, self.rows_per_epoch)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._epoch_rows(int(epoch), offsets[here])
        return result

    def _epoch_rows(self, epoch: int, offsets: Rows) -> Rows:
        n, key = self.rows_per_epoch, mix(self.seed, 2, epoch)
        whole = n // self.chunk
        chunks, within = np.divmod(offsets, self.chunk)
        moved = chunks < whole  # the incomplete chunk stays last; the rotation puts other rows into it each epoch
        chunks[moved] = permute(chunks[moved], whole, key)
        virtual = (chunks * self.chunk + within + mix(key, 3) % n) % n
        bounds = self._bounds
        source = np.searchsorted(bounds, virtual, side="right")
        result = np.empty_like(virtual)
        for number, rows in enumerate(self.rows):
            here = source == number
            start = int(bounds[number - 1]) if number else 0
            count = int(bounds[number]) - start
            result[here] = rows[(epoch * count + virtual[here] - start) % max(1, len(rows))]
        return result

    def window_rows(self, window: int) -> Rows:
        """The rows of a window, in the order in which they are trained on."""
        return self.rows_at(self.window_positions(window))


@dataclass(frozen=True)
class WeightedOrder(Order):
    """Rows drawn with replacement, each by the place alone: a row comes as often as its share of `chances` says.

    Batches, windows, epochs and steps are those of an `Order` of the same rows.
    """

    chances: NDArray[np.float64] = field(kw_only=True)
    """(n,), of the rows of the only source; their scale doesn't count."""

    @cached_property
    def _highest(self) -> NDArray[np.float64]:
        total = np.cumsum(self.chances)
        return total / total[-1]

    def rows_at(self, positions: Rows) -> Rows:
        """The rows at some positions of the stream."""
        drawn = Draws(mix(self.seed, 4), positions).one("row")
        return self.rows[0][np.searchsorted(self._highest, drawn, side="right")]


@dataclass(frozen=True)
class PairedOrder(Order):
    """Two streams side by side: each group has rows of all sources but the last, then of it, in fixed `shares`.

    The rows of the first stream come exactly as in an `Order` of their own, which also sets epochs and steps. Batch
    sizes count both. A position is twice the position in the row's stream, plus 1 for the second stream.
    """

    shares: tuple[int, int] = (1, 1)
    """Parts of a group that are of either stream; their sum divides the group."""

    @cached_property
    def parts(self) -> tuple[Order, Order]:
        """The orders of the two streams."""
        streams = (self.rows[:-1], self.weights[:-1]), (self.rows[-1:], self.weights[-1:])
        first, second = (
            Order(
                rows=streams[number][0],
                weights=streams[number][1],
                seed=mix(self.seed, number) if number else self.seed,
                epochs=self.epochs,
                global_batch_size=self.global_batch_size // sum(self.shares) * share,
                group_size=self.group_size // sum(self.shares) * share,
                chunk=self.chunk,
            )
            for number, share in enumerate(self.shares)
        )
        return first, second

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first stream in an epoch."""
        return self.parts[0].rows_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the run, by the first stream."""
        return self.parts[0].steps

    @property
    def window_steps(self) -> int:
        """Steps of a round, as of the first stream alone."""
        return self.parts[0].window_steps

    def positions(self, steps: range, slot: int) -> Rows:
        """Positions of a slot for the steps of a round: for each step the first stream's, then the second's."""
        both = [
            2 * part.positions(steps, slot).reshape(len(steps), -1) + number for number, part in enumerate(self.parts)
        ]
        return np.concatenate(both, axis=1).ravel()

    def rows_at(self, positions: Rows) -> Rows:
        """The rows at some positions of either stream."""
        result = np.empty_like(positions)
        for number, part in enumerate(self.parts):
            here = positions % 2 == number
            result[here] = part.rows_at(positions[here] // 2)
        return result


@dataclass(frozen=True)
class SharedOrder(PairedOrder):
    """Two streams side by side, in the epochs and steps of an `Order` of all their rows: the rows of a stream come more
    or less than once an epoch, by its share."""

    rows_per_epoch = Order.rows_per_epoch
    steps = Order.steps
    window_steps = Order.window_steps


def sample(rows: Rows, count: int, seed: int) -> Rows:
    """A random sample of at most `count` rows, by the seed, in ascending order."""
    if len(rows) <= count:
        return rows
    return np.sort(rows[permute(np.arange(count), len(rows), seed)])
