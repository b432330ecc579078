"""The training loop of every stage. It knows a `Session`, not Ray.

The run is exact: every random draw (mask, drop path, augmentation) is keyed by the micro-batch's place in the run, so
that going on from a commit, or with another number of workers, repeats the draws of an undisturbed run.
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

from raymae.models import choose_attention
from raymae.storage.events import latest_step, take_back_events
from raymae.storage.folder import Folder
from raymae.training import parallel
from raymae.training.batches.order import mix
from raymae.training.batches.windows import MicroBatch
from raymae.training.figures import Pictures
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.preemption import Preemption
from raymae.training.optim import Ema, adamw, clip_gradients, learning_rate, set_lr
from raymae.training.profiling import device_use, profiled
from raymae.training.state.checkpoint import Committer, load_commit, pack_optimizer, send_shards, unpack_optimizer
from raymae.training.state.commit_schedule import CommitSchedule, is_mark
from raymae.training.state.provenance import check_commit, provenance
from raymae.training.tasks.base import Progress, Task, TrainingError
from raymae.training.worker import Session

log = logging.getLogger(__name__)


class Trainer:
    """One rank's training run."""

    def __init__(
        self,
        task: Task,
        session: Session,
        artifact: Folder,
        beat: Callable[[int], None] = lambda step: None,
        deadline: Deadline = FOREVER,
    ) -> None:
        self.task, self.session, self.artifact = task, session, artifact
        self.beat, self.deadline = beat, deadline
        self.config, self.order = task.config, task.order
        self.device = session.torch_device
        self.clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        """Counts work: on CPUs the seconds of this thread, which others on the machine don't stretch."""
        torch.set_flush_denormal(True)  # small second moments would slow the optimiser on CPUs several times
        self.model = task.model
        choose_attention(self.model, self.device, self.config.precision)
        step = session.gather(latest_step(artifact))[0]  # a commit may become the newest at any moment
        if session.rank == 0:
            take_back_events(artifact, after=step or 0)
        if step is None:
            task.begin(self.device)
        self.ema = Ema(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        self.progress = Progress()
        self._own_trail = 0
        self.best: dict[str, Tensor] = {}
        self.chosen: nn.Module | None = None
        self.pace, self.preemption = CommitSchedule(self.config, self.order), Preemption()
        self.pictures = Pictures(artifact, task.spec.name)
        self.committer = Committer(artifact, self.config.keep_commits)
        moments = {} if step is None else self._restore(step)
        self.hollow = parallel.hollow(self.model)
        self.wrapped = session.wrap(self.model)
        if self.ema:
            session.wrap(self.ema.model)
            task.averaged = self.ema.model
        self.statistics = parallel.RunningStatistics(self.model)
        self.optimizer = adamw(task.parameter_groups(), self.config)  # of the wrapped model: sharding replaces weights
        if moments:
            unpack_optimizer(self.optimizer, moments)
        if self.config.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]

    def _restore(self, step: int) -> dict[str, Tensor]:
        """Go on from the newest commit; the optimiser's moments are for the optimiser to come."""
        check_commit(self.task.spec)
        parts, state = load_commit(self.artifact, step)
        self.model.load_state_dict(parts["model"])
        if self.ema:
            self.ema.load_state_dict(parts["ema"])
        self.best = {name: value.to(self.device) for name, value in parts.get("best", {}).items()}
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        log.info("going on from the commit at step %d of %d", step, self.order.steps)
        return parts["optimizer"]

    @property
    def result_model(self) -> nn.Module:
        """What the stage hands on: the averaged weights where they are kept, in the end the best where they are chosen.

        Plain and whole; every rank has to ask.
        """
        if self.chosen is not None:
            return self.chosen
        return parallel.whole(self.ema.model if self.ema else self.model, self.hollow, self.device)

    def share_done(self) -> float:
        """How much of the run lies behind, 0 to 1: of its steps or, with a time budget, of its seconds."""
        share = self.progress.step / self.order.steps
        if self.task.max_seconds is None:
            return share
        seconds = self.session.gather(self.progress.work_seconds)[0]
        return min(1.0, max(share, seconds / self.task.max_seconds))

    @property
    def ended(self) -> bool:
        """Whether the run is complete; a job whose time is up leaves it before."""
        return self.share_done() >= 1

    def run(self) -> Progress:
        """Train to the end, or to the commit at which it has to stop; returns the counts, the weights are in
        `result_model`."""
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
        if share >= 1 and self.best:
            self.chosen = self.result_model
            self.chosen.load_state_dict(self.best)
        return self.progress

    def trail(self) -> str:
        """16 hexadecimal digits that tell apart runs which saw other clips so far, or the same ones at other steps.

        The same for any number of workers. Called by every rank at the same step.
        """
        parts = self.session.gather(self._own_trail)
        self.progress.trail, self._own_trail = (self.progress.trail + sum(parts)) % 2**64, 0
        return f"{self.progress.trail:016x}"

    def _commit_or_stop(self) -> bool:
        """Commit where it is due, as rank 0 sees it; True where the run stops at this commit.

        It does when the time is up, when a node is about to be taken away, and where more workers could take part.
        """
        session = self.session
        due, stop, look = session.gather(
            (self.pace.due(self.progress.step), self.deadline.is_over(), self.preemption.due())
        )[0]
        if look:
            urgent, leave = session.gather(self.preemption.look(session.preemption_time(), self.pace.cost))[0]
            due, stop = due or urgent, stop or leave
        if due or stop:
            self._commit()
            stop = stop or session.gather(session.can_grow())[0]
        return bool(stop)

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """Keep the weights of the best validation, of equal ones the latest; where val can carry the choice."""
        progress, value = self.progress, metrics.get(self.task.selection.metric)
        if not self.task.selection.best or value is None:
            return
        if progress.best_metric is None or value >= progress.best_metric:
            progress.best_metric, progress.best_step = value, progress.step
            self.best = {name: tensor.detach().clone() for name, tensor in self.result_model.state_dict().items()}

    def _report(self, metrics: dict[str, float], mark: bool, ended: bool) -> None:
        """Every few steps and at every mark; at some marks with figures, which stand before they are announced."""
        step = self.progress.step
        if step % self.config.report_steps and not mark:
            return
        self.progress.metrics = metrics = mean_metrics(self.session.gather(metrics | device_use(self.device)))
        counts = {"step": step, "steps": self.order.steps, "last": ended}
        event: dict[str, Any] = {**counts, "trail": self.trail(), "metrics": metrics}
        if mark and not ended and self.session.gather(self.pictures.due())[0]:
            figures = self.task.figures(self.result_model.eval())
            self.model.train()
            if self.session.rank == 0:
                event["figures"] = self.pictures.draw(event, figures)
        self.session.report(event)

    def _step(self, batches: Iterator[MicroBatch], share: float) -> dict[str, float]:
        progress, config = self.progress, self.config
        started, worked = time.perf_counter(), self.clock()
        lr = learning_rate(share, config)
        set_lr(self.optimizer, lr)
        if progress.step < self.task.head_steps:
            freeze_encoder(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        count = self.order.slots // self.session.world_size
        losses, waited = [], 0.0
        for turn in range(count):
            before, spent = time.perf_counter(), self.clock()
            batch = next(batches)
            waited += time.perf_counter() - before
            worked += self.clock() - spent
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
        progress.work_seconds += self.clock() - worked
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
        if self.best:
            parts["best"] = self.best
        if self.session.rank == 0:
            state = {"scaler": self.scaler.state_dict(), "progress": asdict(self.progress), **self.provenance}
            self.committer.commit(self.progress.step, parts, state)
        else:
            send_shards(parts)
        seconds = time.perf_counter() - started
        self.progress.commit_seconds += seconds
        self.pace.committed(seconds)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What a commit says of itself."""
        return provenance(self.task.spec)


def mean_metrics(found: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the ranks that have it."""
    names = {name: [metrics[name] for metrics in found if name in metrics] for metrics in found for name in metrics}
    return {name: sum(values) / len(values) for name, values in names.items()}


def freeze_encoder(optimizer: torch.optim.Optimizer) -> None:
    """Learning rate 0 for everything but the head."""
    for group in optimizer.param_groups:
        if group["name"].startswith("encoder"):
            group["lr"] = 0.0
