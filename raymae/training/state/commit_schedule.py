"""When a training run validates and when it commits."""

from __future__ import annotations

import time

from raymae.config import TrainConfig
from raymae.training.batches.order import Order

VALIDATIONS = 10
EPOCH_COMMIT_SECONDS = 15.0
COST_SHARE = 0.02
"""Largest share of the time that commits at ends of epochs may stop the training for."""


def is_mark(before: float, after: float) -> bool:
    """Whether a step that took the run from one share of it (0 to 1) to another ends one of its `VALIDATIONS` parts."""
    return int(after * VALIDATIONS + 1e-9) > int(before * VALIDATIONS + 1e-9)


class CommitSchedule:
    """Says when a commit is due: the interval is over, or an epoch has ended that was worth keeping."""

    def __init__(self, config: TrainConfig, order: Order) -> None:
        self.interval, self.batch, self.rows = (
            60 * config.commit_minutes,
            config.global_batch_size,
            order.rows_per_epoch,
        )
        self._last, self.cost = time.monotonic(), 0.0

    def due(self, step: int) -> bool:
        """Whether to commit after this step."""
        seconds = time.monotonic() - self._last
        epoch_ended = step * self.batch // self.rows > (step - 1) * self.batch // self.rows
        worth = max(EPOCH_COMMIT_SECONDS, self.cost / COST_SHARE)
        return seconds > self.interval or (epoch_ended and seconds > worth)

    def committed(self, cost: float) -> None:
        """A commit was made and stopped the training for `cost` seconds."""
        self._last, self.cost = time.monotonic(), cost
