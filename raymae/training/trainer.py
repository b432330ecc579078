"""The training loop of every stage. It knows a `Session`, not Ray.

The run is exact: every random draw (mask, drop path, augmentation) is keyed by a clip's place in the run, so that
resuming from a checkpoint, or with another number of workers, repeats the draws of an uninterrupted run. What the
device computed is fetched every `report_steps` alone; the workers talk about checkpoints about once a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from raymae.storage.commits import step_of
from raymae.storage.events import take_back_events
from raymae.storage.folder import Folder
from raymae.training import parallel, trial
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import ahead, rank_slots
from raymae.training.feeder import DEPTH, plan_passes, prepared_steps
from raymae.training.figures import FigureWriter
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.gpu import explained
from raymae.training.guards.preemption import Preemption
from raymae.training.optim import Ema, adamw, freeze_encoder, learning_rate, set_lr
from raymae.training.pace import Pace
from raymae.training.profiling import device_use, profiled
from raymae.training.state import checkpoint
from raymae.training.state.commit_schedule import CommitSchedule, is_mark
from raymae.training.state.provenance import check_commit, provenance
from raymae.training.step import PreparedStep, TrainStep, autocast
from raymae.training.tasks.base import Progress, Task, TrainingError
from raymae.training.worker import Session, prepare_model, prepare_process

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
        self.pace = Pace(self.device)
        self.model = task.model
        self.ema = Ema(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type) if self.config.precision == "fp16" else None
        self.progress = Progress()
        self._own_trail = 0
        self.next_talk = 0
        """The step after which the workers next agree on a checkpoint."""
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
        """Start a run, or resume it from its newest checkpoint or that of the segment before; called by every rank.

        Prepares the process and the task's model, and takes back the events that came after the checkpoint.
        """
        prepare_process(session.torch_device, task.spec.config.compute)
        place, name, commit = checkpoint.load_start(session, artifact, task.spec.segment)
        if session.rank == 0:
            take_back_events(artifact, after=step_of(name) if name else 0)
        if name is None:
            task.begin(session.torch_device)
        else:
            check_commit(task.spec, name, place)
        return cls(task, session, artifact, commit, beat, deadline)

    def _restore(self, commit: checkpoint.Commit) -> dict[str, Tensor]:
        """Take over a checkpoint; returns the moments, for the optimiser that is built later."""
        parts, state = commit
        self.model.load_state_dict(parts.pop("model"))  # popped, so that their memory is free afterwards
        if self.ema:
            self.ema.load_state_dict(parts.pop("ema"))
        self.best = {name: value.to(self.device) for name, value in parts.pop("best", {}).items()}
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        log.info("resuming from the checkpoint at step %d of %d", self.progress.step, self.order.steps)
        return parts.pop("optimizer")

    def _wrap(self, moments: dict[str, Tensor]) -> None:
        """Move the model to the device, shard or compile it, and build its optimiser."""
        self.meta_copy = parallel.meta_copy(self.model)
        prepare_model(self.model, self.device, self.config)
        wrapped = self.session.wrap(self.model, self.config.precision)
        if self.ema:
            self.session.wrap(self.ema.model, self.config.precision)
            self.task.averaged = self.ema.model
        # of the wrapped model: sharding replaces the weights
        self.optimizer = adamw(self.task.parameter_groups(), self.config)
        if moments:
            checkpoint.unpack_optimizer(self.optimizer, moments)
        own = rank_slots(self.order.slots, self.session.rank, self.session.world_size)
        statistics = parallel.RunningStatistics(self.model, self.order.slots, own)
        self.step = TrainStep(
            self.task, self.model, wrapped, self.optimizer, statistics, self.device, self.ema, self.scaler
        )
        counts = [self.progress.bad_steps, self.progress.bad_in_a_row, self.progress.bad_in_a_row]
        self.step.counters = torch.tensor(counts, dtype=torch.float32, device=self.device)

    @property
    def result_model(self) -> nn.Module:
        """The weights that the stage keeps: the EMA weights if there are any, at the end the best if it selects.

        Plain and unsharded; collective, so every rank has to ask.
        """
        if self.chosen is not None:
            return self.chosen
        return parallel.unsharded(self.ema.model if self.ema else self.model, self.meta_copy, self.device)

    def share_done(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return self.progress.step / self.order.steps

    @property
    def ended(self) -> bool:
        """Whether the run, or its segment, is complete; a job whose time is up stops before."""
        return self.share_done() >= 1 or self.task.spec.ends_at(self.progress.step)

    def run(self) -> Progress:
        """Train to the end, or to the checkpoint at which the run has to stop.

        Returns the counts; the weights are in `result_model`.
        """
        try:
            share = self._loop()
        except RuntimeError as error:
            reason = explained(error, self.session.rank, self.progress.step)
            if reason is error:
                raise
            raise reason from error
        self.committer.wait()
        self.session.reported()()
        if share >= 1 and self.best:
            self.chosen = self.result_model
            self.chosen.load_state_dict(self.best)
        return self.progress

    def _loop(self) -> float:
        """Take the steps; the share of the run that is done then."""
        share, stop = self.share_done(), self.ended
        profile_steps = 0 if self.session.rank else self.task.spec.config.compute.profile_steps
        with profiled(self.artifact, profile_steps, self.device) as profile_step, closing(self._steps()) as steps:
            while share < 1 and not stop:
                before = share
                self._take(steps, share)
                share = self.share_done()
                mark = is_mark(before, share)
                validated = self._validate() if mark else {}
                self._keep_best(validated)
                self._report(validated, mark, share >= 1)
                profile_step()
                if share < 1:
                    stop = self._commit_or_stop()
                self.beat(self.progress.step)
        self._count_bad_steps()
        return share

    def _steps(self) -> Generator[PreparedStep]:
        """This rank's steps from the present one on, prepared ahead."""
        if self.share_done() >= 1:
            return
        transfer, workers = Transfer(self.device), self.session.world_size
        passes = plan_passes(self.task, self.order, workers, sharded=parallel.is_sharded(self.model))
        groups = self.session.groups(self.order, self.progress.step)
        first = next(groups)
        if trial.is_needed(self.model, self.device, self.config.compile):
            passes = trial.passes_that_fit(self.step, self.session, first[1], passes, transfer)
        yield from ahead(prepared_steps(self.task, chain([first], groups), passes, transfer), DEPTH)

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

        It stops at the end of its segment, when the time is up or a node is about to be taken away, and when more
        workers could take part.
        """
        session, step = self.session, self.progress.step
        if step < self.next_talk and not self.ended:
            return False
        least = 60 * self.config.commit_minutes / 10
        wanted = (
            self.commit_schedule.due(step),
            self.ended or self.deadline.is_over(),
            self.preemption.due(),
            self.pace.steps_in(least),
        )
        due, stop, poll, steps = session.gather(wanted)[0]
        self.next_talk = step + (steps if session.world_size > 1 else 1)
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

    def _report(self, validated: dict[str, float], mark: bool, ended: bool) -> None:
        """Report every few steps and at every mark; at some marks with figures, written before the event names them."""
        step = self.progress.step
        if step % self.config.report_steps and not mark:
            return
        with self.pace.reading(self.progress):
            metrics = self.step.read()
        self.task.check_metrics(metrics)
        self._count_bad_steps()
        metrics |= {"lr": self._lr, **self.pace.metrics(self.order.global_batch_size), **device_use(self.device)}
        metrics |= {"skipped_steps": float(self.progress.bad_steps)} if self.progress.bad_steps else {}
        metrics["epoch"] = step * self.config.global_batch_size / self.order.rows_per_epoch
        self.progress.metrics = metrics = self.session.gather(metrics | validated)[0]
        counts = {
            "step": step,
            "steps": self.order.steps,
            "clips_per_step": self.order.global_batch_size,
            "last": ended,
        }
        event: dict[str, Any] = {**counts, "trail": self.trail(), "metrics": metrics}
        if mark and not ended and self.session.gather(self.figures.due())[0]:
            with self._uncompiled():
                figures = self.task.figures(self.result_model.eval())
            self.model.train()
            if self.session.rank == 0:
                event["figures"] = self.figures.draw(event, figures)
        self.session.report(event)

    def _take(self, steps: Iterator[PreparedStep], share: float) -> None:
        """Wait for the next step's batches, and update the weights by them."""
        with self.pace.step(self.progress) as arrived:
            prepared = next(steps)
            arrived()
            self._own_trail += prepared.fingerprint
            self._lr = learning_rate(share, self.config)
            set_lr(self.optimizer, self._lr)
            if self.progress.step < self.task.head_steps:
                freeze_encoder(self.optimizer)
            self.step.run(prepared, share)
            self.progress.step += 1

    def _count_bad_steps(self) -> None:
        """Fetch how many steps were skipped; TrainingError if too many in a row were."""
        progress, before = self.progress, self.progress.bad_steps
        total, row, most = (int(value) for value in self.step.counters.tolist())
        progress.bad_steps, progress.bad_in_a_row = total, row
        if total > before:
            log.warning(
                "%d of the steps up to %d skipped: their gradients were not finite", total - before, progress.step
            )
        if most >= self.config.max_bad_steps:
            fp16 = ", precision bf16 has float32's range" if self.config.precision == "fp16" else ""
            raise TrainingError(
                f"{most} steps in a row had a gradient that is not finite (up to step {progress.step}); the last "
                f"checkpoint is kept. A smaller learning rate or precision fp32 may help{fp16}"
            )

    def _validate(self) -> dict[str, float]:
        model = self.result_model.eval()
        with self._uncompiled(), torch.inference_mode(), autocast(self.config.precision, self.device):
            metrics = self.task.validate(model, self.session)
        self.model.train()
        return metrics

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """A context without compiled blocks: they are compiled for the shapes of training."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def _commit(self) -> None:
        """Write a checkpoint, in the background; collective."""
        started = time.perf_counter()
        self._count_bad_steps()
        self.trail()  # the trail of all ranks is part of the checkpoint
        parts = {"model": dict(self.model.state_dict()), "optimizer": checkpoint.pack_optimizer(self.optimizer)}
        if self.ema:
            parts["ema"] = self.ema.state_dict()
        if self.best:
            parts["best"] = self.best
        if self.session.rank == 0:
            state = {
                "scaler": self.scaler.state_dict() if self.scaler else {},
                "progress": asdict(self.progress),
                **self.provenance,
            }
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
