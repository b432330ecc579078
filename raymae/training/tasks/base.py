"""What the training loop runs, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor, nn

from raymae.config import TrainConfig
from raymae.training.batches.order import Order
from raymae.training.batches.windows import MicroBatch
from raymae.training.spec import StageSpec
from raymae.training.tasks.selection import Selection
from raymae.training.worker import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Task(Protocol):
    """What differs between pre-training and fine-tuning."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def config(self) -> TrainConfig:
        """The stage's section."""
        ...

    @property
    def max_seconds(self) -> float | None:
        """Budget of work seconds."""
        ...

    spec: StageSpec
    order: Order
    clip_ids: pa.LargeStringArray
    seed: int
    head_steps: int
    selection: Selection
    averaged: nn.Module | None
    """The average of the weights, in evaluation mode, where the loop keeps one."""

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and what else is worth a line of metrics."""
        ...

    def begin(self, device: torch.device) -> None:
        """Called before the first step of a run that has no commit yet, with the model plain and whole."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's parameters for the optimiser; asked for once they are on their device, perhaps sharded."""
        ...

    def after_update(self, share: float) -> None:
        """Called after each update of the weights with the share of the run that is done."""
        ...

    def validate(self, model: nn.Module, session: Session) -> dict[str, float]:
        """Metrics of a plain whole model on the validation split, if there is any; called by every rank."""
        ...

    def figures(self, model: nn.Module) -> dict[str, Figure]:
        """Pictures of what the model can do, by name; called by every rank."""
        ...

    def save(self, model: nn.Module) -> None:
        """Write what the stage hands on, from a plain whole model; called by rank 0."""
        ...


class TrainingError(RuntimeError):
    """The stage can't go on; the last commit stands."""


@dataclass
class Progress:
    """What is counted while training; part of every commit."""

    step: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    work_seconds: float = 0.0
    wait_seconds: float = 0.0
    commit_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    trail: int = 0
    """Sum modulo 2^64 of the fingerprints of all micro-batches so far: which clips were trained on, and when."""
    best_metric: float | None = None
    """Of the weights that are kept as the best, where the stage selects."""
    best_step: int = 0
