"""The training loop of every stage. It knows a `Session`, not Ray.

The run is exact: every random draw (mask, drop path, augmentation) is keyed by the micro-batch's index in the run, so
that resuming from a checkpoint, or with another number of workers, repeats the draws of an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from raymae.storage.commits import step_of
from raymae.storage.events import take_back_events
from raymae.storage.folder import Folder
from raymae.training import parallel
from raymae.training.batches.order import mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.figures import FigureWriter
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.preemption import Preemption
from raymae.training.optim import Ema, adamw, clip_gradients, freeze_encoder, learning_rate, set_lr
from raymae.training.profiling import device_use, profiled
from raymae.training.state import checkpoint
from raymae.training.state.commit_schedule import CommitSchedule, is_mark
from raymae.training.state.provenance import check_commit, provenance
from raymae.training.tasks.base import Progress, Task, TrainingError
from raymae.training.worker import Session, prepare_process

log = logging.getLogger(__name__)


class Trainer:
    """One rank's training run; `Trainer.start` makes one.

    Args:
        commit: the checkpoint that it resumes from.
        beat: called with the step after each step, see `Watchdog`.
    """

    def __init__(
        self,
        task: Task,
        session: Session,
        artifact: Folder,
        commit: checkpoint.Commit | None = None,
        beat: Callable[[int], None] = lambda step: None,
        deadline: Deadline = FOREVER,
    ) -> None:
        self.task, self.session, self.artifact = task, session, artifact
        self.beat, self.deadline = beat, deadline
        self.config, self.order = task.config, task.order
        self.device = session.torch_device
        self.clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        """The clock of `work_seconds`: on CPUs this thread's CPU time, which other processes don't stretch."""
        self.model = task.model
        self.ema = Ema(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        self.progress = Progress()
        self._own_trail = 0
        self.best: dict[str, Tensor] = {}
        self.chosen: nn.Module | None = None
        self.commit_schedule, self.preemption = CommitSchedule(self.config, self.order), Preemption()
        self.figures = FigureWriter(artifact, task.spec.name)
        self.committer = checkpoint.Committer(artifact, self.config.keep_commits, task.spec.check_lease)
        moments = self._restore(commit) if commit else {}
        self._wrap(moments)

    @classmethod
    def start(
        cls,
        task: Task,
        session: Session,
        artifact: Folder,
        beat: Callable[[int], None] = lambda step: None,
        deadline: Deadline = FOREVER,
    ) -> Trainer:
        """Start a run, or resume it from its newest checkpoint; called by every rank.

        Prepares the process and the task's model, and takes back the events that came after the checkpoint.
        """
        prepare_process(task.model, session.torch_device, task.config)
        name, commit = checkpoint.load_newest(session, artifact)
        if session.rank == 0:
            take_back_events(artifact, after=step_of(name) if name else 0)
        if name is None:
            task.begin(session.torch_device)
        else:
            check_commit(task.spec, name)
        return cls(task, session, artifact, commit, beat, deadline)

    def _restore(self, commit: checkpoint.Commit) -> dict[str, Tensor]:
        """Take over a checkpoint; returns the moments, for the optimiser that is built later."""
        parts, state = commit
        self.model.load_state_dict(parts.pop("model"))  # popped, so that their memory is free afterwards
        if self.ema:
            self.ema.load_state_dict(parts.pop("ema"))
        self.best = {name: value.to(self.device) for name, value in parts.pop("best", {}).items()}
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        log.info("resuming from the checkpoint at step %d of %d", self.progress.step, self.order.steps)
        return parts.pop("optimizer")

    def _wrap(self, moments: dict[str, Tensor]) -> None:
        """Move the model to the device, shard or compile it, and build its optimiser."""
        self.meta_copy = parallel.meta_copy(self.model)
        self.wrapped = self.session.wrap(self.model)
        if self.ema:
            self.session.wrap(self.ema.model)
            self.task.averaged = self.ema.model
        self.statistics = parallel.RunningStatistics(self.model)
        # of the wrapped model: sharding replaces the weights
        self.optimizer = adamw(self.task.parameter_groups(), self.config)
        if moments:
            checkpoint.unpack_optimizer(self.optimizer, moments)
        if self.config.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]

    @property
    def result_model(self) -> nn.Module:
        """The weights that the stage keeps: the EMA weights if there are any, at the end the best if it selects.

        Plain and unsharded; collective, so every rank has to ask.
        """
        if self.chosen is not None:
            return self.chosen
        return parallel.unsharded(self.ema.model if self.ema else self.model, self.meta_copy, self.device)

    def share_done(self) -> float:
        """Share of the run that is done, 0 to 1: of its steps or, with a time budget, of its seconds."""
        share = self.progress.step / self.order.steps
        if self.task.max_seconds is None:
            return share
        seconds = self.session.gather(self.progress.work_seconds)[0]
        return min(1.0, max(share, seconds / self.task.max_seconds))

    @property
    def ended(self) -> bool:
        """Whether the run is complete; a job whose time is up stops before."""
        return self.share_done() >= 1

    def run(self) -> Progress:
        """Train to the end, or to the checkpoint at which the run has to stop.

        Returns the counts; the weights are in `result_model`.
        """
        batches = self.session.batches(self.order, self.progress.step)
        share, stop = self.share_done(), False
        profile_steps = 0 if self.session.rank else self.task.spec.config.compute.profile_steps
        with profiled(self.artifact, profile_steps, self.device) as profile_step:
            while share < 1 and not stop:
                before, metrics = share, self._step(batches, share)
                share = self.share_done()
                mark = is_mark(before, share)
                if mark:
                    metrics |= self._validate()
                    self._keep_best(metrics)
                self._report(metrics, mark, share >= 1)
                profile_step()
                if share < 1:
                    stop = self._commit_or_stop()
                self.beat(self.progress.step)
        self.committer.wait()
        self.session.reported()()
        if share >= 1 and self.best:
            self.chosen = self.result_model
            self.chosen.load_state_dict(self.best)
        return self.progress

    def trail(self) -> str:
        """16 hexadecimal digits that differ between runs that trained on other clips so far, or on the same ones at
        other steps.

        The same for any number of workers. Called by every rank at the same step.
        """
        parts = self.session.gather(self._own_trail)
        self.progress.trail, self._own_trail = (self.progress.trail + sum(parts)) % 2**64, 0
        return f"{self.progress.trail:016x}"

    def _commit_or_stop(self) -> bool:
        """Write a checkpoint if one is due, as rank 0 decides; True if the run stops at it.

        It stops when the time is up, when a node is about to be taken away, and when more workers could take part.
        """
        session = self.session
        due, stop, poll = session.gather(
            (self.commit_schedule.due(self.progress.step), self.deadline.is_over(), self.preemption.due())
        )[0]
        if poll:
            decision = self.preemption.poll(session.preemption_time(), self.commit_schedule.cost)
            urgent, leave = session.gather(decision)[0]
            due, stop = due or urgent, stop or leave
        if due or stop:
            self._commit()
            stop = stop or session.gather(session.can_grow())[0]
        return bool(stop)

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """Keep the weights of the best validation, of equal ones the latest, if the stage selects by val."""
        progress, value = self.progress, metrics.get(self.task.selection.metric)
        if not self.task.selection.best or value is None:
            return
        if progress.best_metric is None or value >= progress.best_metric:
            progress.best_metric, progress.best_step = value, progress.step
            self.best = {name: tensor.detach().clone() for name, tensor in self.result_model.state_dict().items()}

    def _report(self, metrics: dict[str, float], mark: bool, ended: bool) -> None:
        """Report every few steps and at every mark; at some marks with figures, written before the event names them."""
        step = self.progress.step
        if step % self.config.report_steps and not mark:
            return
        self.progress.metrics = metrics = parallel.mean_metrics(self.session.gather(metrics | device_use(self.device)))
        counts = {"step": step, "steps": self.order.steps, "last": ended}
        event: dict[str, Any] = {**counts, "trail": self.trail(), "metrics": metrics}
        if mark and not ended and self.session.gather(self.figures.due())[0]:
            figures = self.task.figures(self.result_model.eval())
            self.model.train()
            if self.session.rank == 0:
                event["figures"] = self.figures.draw(event, figures)
        self.session.report(event)

    def _step(self, batches: Iterator[MicroBatch], share: float) -> dict[str, float]:
        """One update of the weights, by the gradients of all micro-batches of a step; its metrics."""
        progress, config = self.progress, self.config
        started, worked = time.perf_counter(), self.clock()
        lr = learning_rate(share, config)
        set_lr(self.optimizer, lr)
        if progress.step < self.task.head_steps:
            freeze_encoder(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        losses, waited, idle = self._backward(batches)
        self.statistics.merge()
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), config.clip_grad_norm)
        self._update(bool(torch.isfinite(norm)), share)
        progress.step += 1
        means = {name: float(torch.stack([item[name] for item in losses]).nanmean()) for name in losses[0]}
        metrics = {name: value for name, value in means.items() if math.isfinite(value)}
        seconds = time.perf_counter() - started
        progress.work_seconds += self.clock() - worked - idle
        progress.wait_seconds += waited
        return {
            **metrics,
            "lr": lr,
            **({"grad_norm": float(norm)} if math.isfinite(norm) else {}),
            "clips_per_second": self.order.global_batch_size / seconds,
            "data_wait_share": waited / seconds,
            **({"skipped_steps": float(progress.bad_steps)} if progress.bad_steps else {}),
            "epoch": progress.step * config.global_batch_size / self.order.rows_per_epoch,
        }

    def _backward(self, batches: Iterator[MicroBatch]) -> tuple[list[dict[str, Tensor]], float, float]:
        """Add up the gradients of this rank's micro-batches of a step.

        Returns the loss and metrics of each, and the seconds waited for data, by the wall clock and by `clock`.
        """
        count = self.order.slots // self.session.world_size
        losses, waited, idle = [], 0.0, 0.0
        for turn in range(count):
            before, spent = time.perf_counter(), self.clock()
            batch = next(batches)
            waited += time.perf_counter() - before
            idle += self.clock() - spent
            self._own_trail += batch.fingerprint(self.task.clip_ids)
            torch.manual_seed(mix(self.task.seed, 4, batch.index) >> 1)
            last = turn == count - 1
            with nullcontext() if last or not hasattr(self.wrapped, "no_sync") else self.wrapped.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss, extra = self.task.training_step(self.wrapped, batch, self.device)
                self.scaler.scale(loss / count).backward()
            losses.append({"loss": loss.detach(), **extra})
        return losses, waited, idle

    def _update(self, finite: bool, share: float) -> None:
        """Take the step, or skip it if the gradient (averaged, so the same on every rank) is not finite."""
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
                f"{progress.step}); the last checkpoint is kept. A smaller learning rate or precision fp32 may help"
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
        """Write a checkpoint, in the background; collective."""
        started = time.perf_counter()
        self.trail()  # the trail of all ranks is part of the checkpoint
        parts = {"model": dict(self.model.state_dict()), "optimizer": checkpoint.pack_optimizer(self.optimizer)}
        if self.ema:
            parts["ema"] = self.ema.state_dict()
        if self.best:
            parts["best"] = self.best
        if self.session.rank == 0:
            state = {"scaler": self.scaler.state_dict(), "progress": asdict(self.progress), **self.provenance}
            self.committer.commit(self.progress.step, parts, state, self.session.reported())
        else:
            checkpoint.send_shards(parts)
        seconds = time.perf_counter() - started
        self.progress.commit_seconds += seconds
        self.commit_schedule.committed(seconds)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """The stage, its configuration and its clips, for `commit.json`."""
        return provenance(self.task.spec)
