"""When a training run validates and when it writes a checkpoint."""

from __future__ import annotations

from raymae.config import TrainConfig
from raymae.training.batches.order import Order
from raymae.training.interval import Interval

VALIDATIONS = 10
EPOCH_COMMIT_SECONDS = 15.0
"""Least seconds between two checkpoints at ends of epochs."""
COST_SHARE = 0.02
"""Largest share of the time that checkpoints at ends of epochs may stop the training for."""


def is_mark(before: float, after: float) -> bool:
    """Whether a step that took the run from one share of it (0 to 1) to another ends one of its `VALIDATIONS` parts."""
    return int(after * VALIDATIONS + 1e-9) > int(before * VALIDATIONS + 1e-9)


class CommitSchedule:
    """When a checkpoint is due: after `commit_minutes`, and at ends of epochs while the checkpoints are cheap."""

    def __init__(self, config: TrainConfig, order: Order) -> None:
        self.batch, self.rows = config.global_batch_size, order.rows_per_epoch
        self.interval, self.cost = Interval(60 * config.commit_minutes), 0.0
        self._epoch: int | None = None

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint after this step; asked every few steps, always of a later one."""
        epoch, last = step * self.batch // self.rows, self._epoch
        self._epoch = epoch
        epoch_ended = epoch > ((step - 1) * self.batch // self.rows if last is None else last)
        least = max(EPOCH_COMMIT_SECONDS, self.cost / COST_SHARE)
        return self.interval.is_over() or (epoch_ended and self.interval.elapsed() > least)

    def committed(self, cost: float) -> None:
        """Note a checkpoint that stopped the training for `cost` seconds."""
        self.interval.restart()
        self.cost = cost
