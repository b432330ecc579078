"""One update of the weights, from the gradients of all passes of a step. Nothing in it reads back from the device.

The loss is a sum over the clips of the whole step, on all workers, divided by the step's own count (removed patches, or
labelled clips), which is known before: so neither the size of a pass nor the number of workers changes the gradient. A
step whose gradient isn't finite is skipped by the optimiser's own kernel, and counted on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymae.training import parallel
from raymae.training.batches.transfer import DeviceBatch
from raymae.training.optim import Ema, clip_gradients, skip_if
from raymae.training.tasks.base import Task

COUNTERS = ("bad_steps", "bad_in_a_row", "most_in_a_row")
"""Steps that were skipped: in all, now, and at most in a row."""


@dataclass(frozen=True)
class PreparedStep:
    """A rank's part of a step, on its way to the device."""

    step: int
    batches: list[DeviceBatch]
    """The passes."""
    counts: NDArray[np.float64]
    """What the rank's clips add to `Task.counted`."""
    fingerprint: int
    """Sum of the fingerprints of its groups."""


class TrainStep:
    """Computes steps of a task with a model that is on its device, perhaps sharded.

    Args:
        wrapped: the model as it is called: itself, or in a wrapper that averages gradients.
        scaler: of the loss in fp16; None otherwise.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: parallel.RunningStatistics,
        device: torch.device,
        ema: Ema | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.task, self.model, self.wrapped, self.optimizer = task, model, wrapped, optimizer
        self.statistics, self.device, self.ema, self.scaler = statistics, device, ema, scaler
        self.parameters = [one for one in model.parameters() if one.requires_grad]
        self.counters = torch.zeros(len(COUNTERS), device=device)
        self.metrics: dict[str, Tensor] = {}
        """The last step's: this rank's share, all but grad_norm."""

    def run(self, prepared: PreparedStep, share: float) -> None:
        """Update the weights; `share` (0 to 1) is the share of the run that is done then."""
        self.optimizer.zero_grad(set_to_none=True)
        self.metrics = self._backward(prepared.batches, self._totals(prepared.counts))
        self.statistics.merge()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, self.task.config.clip_grad_norm)
        self._update(norm)
        self.metrics["grad_norm"] = norm
        if self.ema:
            self.ema.update(self.model)
        self.task.after_update(share)

    def _totals(self, counts: NDArray[np.float64]) -> dict[str, Tensor]:
        """What the task counts, over all workers."""
        whole = torch.from_numpy(counts)
        if self.device.type == "cuda" and torch.cuda.is_available():
            whole = whole.pin_memory()
        whole = parallel.sum_over_workers(whole.to(self.device, non_blocking=True))
        divisors = self.task.divisors
        whole = torch.cat([whole[:divisors].clamp(min=1), whole[divisors:]]).float()
        return dict(zip(self.task.counted, whole.unbind(), strict=True))

    def _backward(self, batches: Sequence[DeviceBatch], totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up the gradients of this rank's passes; the sums of their metrics."""
        sums: dict[str, Tensor] = {}
        workers = parallel.world_size()  # gradients are averaged over them, and the passes' losses add up
        for number, batch in enumerate(batches):
            with parallel.reduce_gradients(self.wrapped, now=number == len(batches) - 1):
                with autocast(self.task.config.precision, self.device):
                    loss, metrics = self.task.training_step(self.wrapped, batch.arrived(), totals)
                whole = loss * workers
                (self.scaler.scale(whole) if self.scaler else whole).backward()
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    @torch.no_grad()
    def _update(self, norm: Tensor) -> None:
        """Take the step, or skip it where the gradient (of all workers, so the same on each) isn't finite."""
        bad = (~torch.isfinite(norm)).float()
        skip_if(self.optimizer, bad)
        self.optimizer.step()
        if self.scaler:
            self.scaler.update()
        total, row, most = self.counters.unbind()
        row = (row + bad) * bad
        self.counters = torch.stack([total + bad, row, torch.maximum(most, row)])

    def read(self) -> dict[str, float]:
        """The last step's metrics, of all workers: waits for the device. Called by every rank."""
        names = [name for name in self.metrics if name != "grad_norm"]
        shares = torch.stack([self.metrics[name].float() for name in names])
        values = torch.cat([parallel.sum_over_workers(shares), self.metrics["grad_norm"].float()[None]]).tolist()
        found = dict(zip([*names, "grad_norm"], values, strict=True))
        return {name: value for name, value in found.items() if math.isfinite(value)}


def autocast(precision: str, device: torch.device) -> Any:
    """The context of forward passes in a precision."""
    dtype = parallel.DTYPES.get(precision)  # type: ignore[call-overload]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
