"""Run a training stage (pre-training, fine-tuning or consistency training) and write its artifact."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raymae.config import to_dict
from raymae.storage.commits import resumable
from raymae.storage.mapped import release_memory
from raymae.training.guards.deadline import FOREVER, Deadline
from raymae.training.guards.watchdog import Watchdog
from raymae.training.spec import StageSpec
from raymae.training.state.lineage import TRAINED_ON, trained_on_table
from raymae.training.state.segment import COMMIT_NAME
from raymae.training.tasks.base import Progress, Task
from raymae.training.tasks.consistency import ConsistencyTask
from raymae.training.tasks.finetune import FinetuneTask
from raymae.training.tasks.pretrain import PretrainTask
from raymae.training.tasks.selection import described
from raymae.training.trainer import Trainer
from raymae.training.worker import Session

log = logging.getLogger(__name__)

TASKS: dict[str, Callable[[StageSpec], Any]] = {
    "pretrain": PretrainTask,
    "finetune": FinetuneTask,
    "consistency": ConsistencyTask,
}


def build_task(spec: StageSpec) -> Task:
    """The stage's task, its weights initialised by the stage's seed."""
    torch.manual_seed(spec.seed() >> 1)
    task: Task = TASKS[spec.kind](spec)
    release_memory()  # of the columns of all clips that were looked through
    return task


def run_stage(spec: StageSpec, session: Session, deadline: Deadline = FOREVER) -> bool:
    """Train a stage, or a segment of it, to its end and write its artifact; resumes from the newest checkpoint.

    False if it had to stop before: then there is a checkpoint and no result yet.
    """
    with Watchdog(spec.artifact, session.rank, 60 * spec.config.compute.stall_minutes) as watchdog:
        task = build_task(spec)
        trainer = Trainer.start(task, session, spec.artifact, watchdog.beat, deadline)
        watchdog.begin(trainer.progress.step)
        trainer.run()
        ended, model = trainer.ended, trainer.result_model
        if ended and session.rank == 0:
            finish(task, trainer, model, lambda: watchdog.beat(trainer.progress.step))
        session.gather(None)  # all ranks wait until the artifact is written
    return ended


def finish(task: Task, trainer: Trainer, model: nn.Module, beat: Callable[[], None] = lambda: None) -> None:
    """Write a stage's result and its description, and remove its checkpoints, but the one at which a segment ends.

    `beat` is called between the operations, each of which may wait for the storage.
    """
    spec, artifact, progress = task.spec, task.spec.artifact, trainer.progress
    chosen, last = kept_weights(task, progress), kept_commit(task, progress)
    spec.check_lease()
    operations: list[Callable[[], object]] = [
        lambda: task.save(model),
        lambda: artifact.write_json("config.json", to_dict(spec.config)),
        lambda: artifact.write_table(TRAINED_ON, trained_on_table(spec)),
        spec.check_lease,
        lambda: artifact.finish(result(task, progress, trainer.session.world_size, chosen) | last),
        lambda: trainer.committer.clear(last.get(COMMIT_NAME)),
    ]
    for operation in operations:
        operation()
        beat()
    log.info("%s %s", spec.name, described(chosen))


def result(task: Task, progress: Progress, workers: int, chosen: dict[str, Any]) -> dict[str, Any]:
    """The content of a finished stage's `done.json`."""
    return {
        "stage": task.spec.kind,
        "name": task.spec.name,
        "steps": progress.step,
        "clips_per_epoch": task.order.rows_per_epoch,
        "trail": f"{progress.trail:016x}",
        "skipped_steps": progress.bad_steps,
        "work_seconds": progress.work_seconds,
        "data_wait_seconds": progress.wait_seconds,
        "commit_seconds": progress.commit_seconds,
        "workers": workers,
        "metrics": progress.metrics,
        "selection": chosen,
        "finished_at": time.time(),
    }


def kept_commit(task: Task, progress: Progress) -> dict[str, str | None]:
    """The checkpoint at which a segment ends, for other segments to begin from; none where the stage ends."""
    if progress.step >= task.order.steps:
        return {}
    return {COMMIT_NAME: resumable(task.spec.artifact)}


def kept_weights(task: Task, progress: Progress) -> dict[str, Any]:
    """Which weights a stage keeps, and why; a segment before its end keeps the last ones."""
    best, metric = task.selection.best and progress.step >= task.order.steps, task.selection.metric
    return {
        "weights": "best" if best else "last",
        "averaged": task.config.ema_decay is not None,
        "step": progress.best_step if best else progress.step,
        "metric": metric,
        "value": progress.best_metric if best else progress.metrics.get(metric),
        "reason": task.selection.reason,
    }
