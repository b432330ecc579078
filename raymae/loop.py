"""The training loop of every stage. It knows a `Session`, not Ray.

The run is exact: every random draw (mask, drop path, augmentation) is keyed by the micro-batch's place in the run, so
that going on from a commit, or with another number of workers, repeats the draws of an undisturbed run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch import Tensor, nn

from raymae import parallel
from raymae.artifacts import Folder, latest_step
from raymae.checkpoint import Committer, load_commit, pack_optimizer, send_shards, unpack_optimizer
from raymae.config import TrainConfig
from raymae.models import choose_attention
from raymae.optim import Ema, adamw, clip_gradients, learning_rate, set_lr
from raymae.order import Order, mix
from raymae.session import Session
from raymae.windows import MicroBatch

log = logging.getLogger(__name__)

VALIDATIONS = 10
EPOCH_COMMIT_SECONDS = 15.0


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

    order: Order
    clip_ids: pa.LargeStringArray
    seed: int
    head_steps: int

    def training_step(
        self, model: nn.Module, batch: MicroBatch, device: torch.device
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch and what else is worth a line of metrics."""
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


class Trainer:
    """One rank's training run."""

    def __init__(self, task: Task, session: Session, artifact: Folder) -> None:
        self.task, self.session, self.artifact = task, session, artifact
        self.config, self.order = task.config, task.order
        self.device = session.torch_device
        torch.set_flush_denormal(True)  # small second moments would slow the optimiser on CPUs several times
        self.model = task.model
        choose_attention(self.model, self.device, self.config.precision)
        self.ema = Ema(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        self.progress = Progress()
        self._own_trail = 0
        self.committer = Committer(artifact, self.config.keep_commits)
        moments = self._restore()
        self.hollow = parallel.hollow(self.model)
        self.wrapped = session.wrap(self.model)
        if self.ema:
            session.wrap(self.ema.model)
        self.statistics = parallel.RunningStatistics(self.model)
        self.optimizer = adamw(task.parameter_groups(), self.config)  # of the wrapped model: sharding replaces weights
        if moments:
            unpack_optimizer(self.optimizer, moments)
        if self.config.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]

    def _restore(self) -> dict[str, Tensor]:
        """Go on from the newest commit, if there is one; the optimiser's moments are for the optimiser to come."""
        step = self.session.gather(latest_step(self.artifact))[0]  # a commit may become the newest at any moment
        if step is None:
            return {}
        parts, state = load_commit(self.artifact, step)
        self.model.load_state_dict(parts["model"])
        if self.ema:
            self.ema.load_state_dict(parts["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        log.info("going on from the commit at step %d of %d", step, self.order.steps)
        return parts["optimizer"]

    @property
    def result_model(self) -> nn.Module:
        """What the stage hands on: the averaged weights where they are kept. Plain and whole; every rank has to ask."""
        return parallel.whole(self.ema.model if self.ema else self.model, self.hollow, self.device)

    def share_done(self) -> float:
        """How much of the run lies behind, 0 to 1: of its steps or, with a time budget, of its seconds."""
        share = self.progress.step / self.order.steps
        if self.task.max_seconds is None:
            return share
        seconds = self.session.gather(self.progress.work_seconds)[0]
        return min(1.0, max(share, seconds / self.task.max_seconds))

    def run(self) -> Progress:
        """Train to the end and return the counts; the weights are in `result_model`."""
        batches = self.session.batches(self.order, self.progress.step)
        last_commit = time.monotonic()
        marks = {round(self.order.steps * turn / VALIDATIONS) for turn in range(1, VALIDATIONS + 1)}
        while (share := self.share_done()) < 1:
            metrics = self._step(batches, share)
            step = self.progress.step
            ended = self.share_done() >= 1
            if step in marks or ended:
                metrics |= self._validate()
            if step % self.config.report_steps == 0 or step in marks or ended:
                self.progress.metrics = metrics = mean_metrics(self.session.gather(metrics))
                counts = {"step": step, "steps": self.order.steps, "last": ended}
                self.session.report({**counts, "trail": self.trail(), "metrics": metrics})
            if not ended and self.session.gather(self._commit_due(time.monotonic() - last_commit))[0]:
                self._commit()
                last_commit = time.monotonic()
        self.committer.wait()
        return self.progress

    def trail(self) -> str:
        """16 hexadecimal digits that tell apart runs which saw other clips so far, or the same ones at other steps.

        The same for any number of workers. Called by every rank at the same step.
        """
        parts = self.session.gather(self._own_trail)
        self.progress.trail, self._own_trail = (self.progress.trail + sum(parts)) % 2**64, 0
        return f"{self.progress.trail:016x}"

    def _commit_due(self, seconds: float) -> bool:
        """Time for a commit: the interval is over, or an epoch has ended that was worth keeping."""
        batch, step = self.config.global_batch_size, self.progress.step
        epoch_ended = step * batch // self.order.rows_per_epoch > (step - 1) * batch // self.order.rows_per_epoch
        return seconds > 60 * self.config.commit_minutes or (epoch_ended and seconds > EPOCH_COMMIT_SECONDS)

    def _step(self, batches: Iterator[MicroBatch], share: float) -> dict[str, float]:
        progress, config = self.progress, self.config
        started = time.perf_counter()
        lr = learning_rate(share, config)
        set_lr(self.optimizer, lr)
        if progress.step < self.task.head_steps:
            freeze_encoder(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        count = self.order.slots // self.session.world_size
        losses, waited = [], 0.0
        for turn in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            self._own_trail += batch.fingerprint(self.task.clip_ids)
            torch.manual_seed(mix(self.task.seed, 4, batch.index) >> 1)
            last = turn == count - 1
            with nullcontext() if last or not hasattr(self.wrapped, "no_sync") else self.wrapped.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss, extra = self.task.training_step(self.wrapped, batch, self.device)
                self.scaler.scale(loss / count).backward()
            losses.append({"loss": loss.detach(), **extra})
        self.statistics.merge()
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), config.clip_grad_norm)
        self._update(bool(torch.isfinite(norm)), share)
        progress.step += 1
        means = {name: float(torch.stack([item[name] for item in losses]).nanmean()) for name in losses[0]}
        metrics = {name: value for name, value in means.items() if math.isfinite(value)}
        seconds = time.perf_counter() - started
        progress.work_seconds += seconds - waited
        progress.wait_seconds += waited
        return {
            **metrics,
            "lr": lr,
            **({"grad_norm": float(norm)} if math.isfinite(norm) else {}),
            "clips_per_second": config.global_batch_size / seconds,
            "data_wait_share": waited / seconds,
            **({"skipped_steps": float(progress.bad_steps)} if progress.bad_steps else {}),
            "epoch": progress.step * config.global_batch_size / self.order.rows_per_epoch,
        }

    def _update(self, finite: bool, share: float) -> None:
        """Take the step, or skip it where the gradient (averaged, so the same on every rank) is not finite."""
        progress = self.progress
        if finite:
            self.scaler.step(self.optimizer)
            progress.bad_in_a_row = 0
            if self.ema:
                self.ema.update(self.model)
            self.task.after_update(share)
        else:
            progress.bad_steps += 1
            progress.bad_in_a_row += 1
            log.warning("step %d skipped: the gradient is not finite", progress.step)
        self.scaler.update()
        if progress.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{progress.bad_in_a_row} steps in a row had a gradient that is not finite (the last: step "
                f"{progress.step}); the last commit stands. A smaller learning rate or precision fp32 may help"
            )

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)

    def _validate(self) -> dict[str, float]:
        model = self.result_model.eval()
        with torch.inference_mode():
            metrics = self.task.validate(model, self.session)
        self.model.train()
        return metrics

    def _commit(self) -> None:
        started = time.perf_counter()
        self.trail()  # what all ranks have seen is part of the commit
        parts = {"model": dict(self.model.state_dict()), "optimizer": pack_optimizer(self.optimizer)}
        if self.ema:
            parts["ema"] = self.ema.state_dict()
        state = {"scaler": self.scaler.state_dict(), "progress": self.progress.__dict__}
        if self.session.rank == 0:
            self.committer.commit(self.progress.step, parts, state)
        else:
            send_shards(parts)
        self.progress.commit_seconds += time.perf_counter() - started


def mean_metrics(found: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the ranks that have it."""
    names = {name: [metrics[name] for metrics in found if name in metrics] for metrics in found for name in metrics}
    return {name: sum(values) / len(values) for name, values in names.items()}


def freeze_encoder(optimizer: torch.optim.Optimizer) -> None:
    """Learning rate 0 for everything but the head."""
    for group in optimizer.param_groups:
        if group["name"].startswith("encoder"):
            group["lr"] = 0.0
