"""Try a forward and a backward pass before the first step: halve it where memory is short, run eagerly what can't be
compiled.

Nothing of it is kept: the gradients are thrown away, and every draw belongs to a clip's place in the run.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raymae.training import parallel
from raymae.training.batches.passes import Passes
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import Group
from raymae.training.feeder import prepare
from raymae.training.guards.gpu import LESS_MEMORY
from raymae.training.step import TrainStep, autocast
from raymae.training.tasks.base import TrainingError
from raymae.training.worker import Session

log = logging.getLogger(__name__)


def is_needed(model: nn.Module, device: torch.device, compiled: bool) -> bool:
    """Whether a pass can fail for lack of a GPU's memory or of a compiler.

    A batch norm would count the pass in its statistics; its passes can't be halved either.
    """
    return (device.type == "cuda" or compiled) and not any(isinstance(one, _BatchNorm) for one in model.modules())


def passes_that_fit(
    step: TrainStep, session: Session, groups: list[Group], passes: Passes, transfer: Transfer
) -> Passes:
    """The passes, halved once if one doesn't fit into the GPU's memory; the same for all workers.

    Raises:
        TrainingError: it doesn't fit even then.
    """
    task, compiled, halved = step.task, step.task.config.compile, False
    while True:
        error = _try_pass(step, groups, passes, transfer)
        found = [one for one in session.gather(_described(error)) if one]
        if not found:
            return passes
        kind, reason = min(found)
        if kind == "memory":
            clips = passes.size * task.order.group_size
            if halved or passes.size == 1:
                raise TrainingError(
                    f"a forward pass of {clips} clips doesn't fit into the GPU's memory: {reason}. Of the same "
                    f"training, {LESS_MEMORY}"
                )
            passes, halved = replace(passes, most=-(-passes.size // 2)), True
            log.warning(
                "%s: a forward pass of %d clips doesn't fit into the GPU's memory: goes on with %d, to the same result",
                task.spec.name,
                clips,
                passes.size * task.order.group_size,
            )
        elif compiled:
            torch.compiler.set_stance("force_eager")
            compiled = False
            log.warning("%s: the model can't be compiled, and runs uncompiled: %s", task.spec.name, reason)
        elif error is not None:
            raise error
        else:
            raise TrainingError(f"another worker's first forward pass failed: {reason}")


def _described(error: Exception | None) -> tuple[str, str] | None:
    if error is None:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    ends = 2 if lines[0].endswith(":") else 1  # torch.compile names the cause below its first line
    kind = "memory" if isinstance(error, torch.OutOfMemoryError) else "other"
    return kind, f"{type(error).__name__}: {' '.join(lines[:ends])[:300].rstrip('.')}"


def _try_pass(step: TrainStep, groups: list[Group], passes: Passes, transfer: Transfer) -> Exception | None:
    """The error of a first pass without communication beyond it, in the memory that the optimiser leaves."""
    moments = 2 * sum(value.numel() for value in step.parameters if not step.optimizer.state.get(value))
    try:
        reserved = torch.empty(moments if step.device.type == "cuda" else 0, device=step.device)
        batch = prepare(step.task, 0, groups, passes, transfer).batches[0]
        totals = dict.fromkeys(step.task.counted, torch.ones((), device=step.device))
        # sharded weights are gathered in any case, and gradients that weren't reduced would be kept for the next pass
        with parallel.reduce_gradients(step.wrapped, now=parallel.is_sharded(step.model)):
            with autocast(step.task.config.precision, step.device):
                loss, _ = step.task.training_step(step.wrapped, batch.arrived(), totals)
            loss.backward()
        del reserved
    except Exception as error:  # also compilers' own
        return error.with_traceback(None)
    finally:
        step.optimizer.zero_grad(set_to_none=True)
        for one in step.statistics.step_sums:
            one.sums.zero_()
    return None
