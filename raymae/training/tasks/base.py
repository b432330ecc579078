"""The interface between the training loop and a stage's task, and the loop's counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.config import TrainConfig
from raymae.training.batches.order import Order
from raymae.training.batches.passes import Clips
from raymae.training.batches.transfer import DeviceBatch, HostBatch, Transfer
from raymae.training.spec import StageSpec
from raymae.training.tasks.selection import Selection
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Counts = NDArray[np.float64]
"""(n,): how many there are of each of `Task.counted`."""


class Task(Protocol):
    """A training task: what differs between pre-training, fine-tuning and consistency training."""

    @property
    def model(self) -> nn.Module:
        """The model to train."""
        ...

    @property
    def config(self) -> TrainConfig:
        """The stage's section of the configuration."""
        ...

    counted: tuple[str, ...]
    """The names of what the sums of a step are divided by: the loss is a mean over the whole step, on all workers."""
    divisors: int
    """How many of them, the first ones, the loss is divided by."""
    spec: StageSpec
    order: Order
    clip_ids: pa.LargeStringArray
    seed: int
    head_steps: int
    selection: Selection
    averaged: nn.Module | None
    """The EMA of the model, in evaluation mode, if the loop keeps one; set by the loop."""

    def prepare(self, clips: Clips, transfer: Transfer) -> tuple[HostBatch, Counts]:
        """Decide everything about a forward pass but its arithmetic, and count what is `counted`.

        Called ahead of the step by a thread of its own; `transfer` allocates the memory of the clips and,
        where their log-mels are made on the device, waits for it.
        """
        ...

    def training_step(
        self, model: nn.Module, batch: DeviceBatch, totals: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A pass's share of the step's loss, and of further metrics: over all passes of all workers they add up.

        Reads nothing back from the device. `totals` are the counts of the whole step by the names in `counted`. Those
        that the loss is divided by are at least 1; of others 0 may give a metric that is NaN: it has no value then.
        """
        ...

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """Called with the metrics of a step, those of all workers, before they are reported; TrainingError where going
        on makes no sense."""
        ...

    def begin(self, device: torch.device) -> None:
        """Called before the first step of a run without a checkpoint, with the model plain and unsharded."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's parameters in groups for the optimiser; called once they are on their device, perhaps sharded."""
        ...

    def after_update(self, share: float) -> None:
        """Called after each update of the weights with the share of the run that is done, 0 to 1."""
        ...

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Metrics of a plain, unsharded model on the validation split, if there is any; called by every rank."""
        ...

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """Figures of the model's outputs, by name; called by every rank."""
        ...

    def save(self, model: nn.Module) -> None:
        """Write the stage's result from a plain, unsharded model; called by rank 0."""
        ...


class TrainingError(RuntimeError):
    """The stage can't continue; its last checkpoint is kept."""


@dataclass
class Progress:
    """The counters of a run; part of every checkpoint."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    work_seconds: float = 0.0
    wait_seconds: float = 0.0
    commit_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    trail: int = 0
    """Sum modulo 2^64 of the fingerprints of all mixing groups so far: which clips were trained on, and when."""
    best_metric: float | None = None
    """Validation metric of the weights that are kept as the best, if the stage selects."""
    best_step: int = 0
