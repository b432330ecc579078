"""The training stages: what differs between pre-training and fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from raymae.artifacts import read_events
from raymae.config import to_dict
from raymae.loop import Task, Trainer
from raymae.report import learning_curves, png
from raymae.session import Session
from raymae.spec import StageSpec
from raymae.stages.finetune import FinetuneTask
from raymae.stages.pretrain import PretrainTask

STAGES: dict[str, Callable[[StageSpec], Any]] = {"pretrain": PretrainTask, "finetune": FinetuneTask}


def build_task(spec: StageSpec) -> Task:
    """The stage's task, with the weights that its seed gives."""
    torch.manual_seed(spec.seed() >> 1)
    task: Task = STAGES[spec.kind](spec)
    return task


def run_stage(spec: StageSpec, session: Session) -> None:
    """Train a stage to its end and write its artifact; goes on from the newest commit."""
    task = build_task(spec)
    trainer = Trainer(task, session, spec.artifact)
    progress = trainer.run()
    model = trainer.result_model
    if session.rank == 0:
        task.save(model)
        curves = learning_curves(read_events(spec.artifact), spec.name)
        spec.artifact.write_bytes("figures/learning_curves.png", png(curves))
        spec.artifact.write_json("config.json", to_dict(spec.config))
        spec.artifact.finish(
            {
                "stage": spec.kind,
                "name": spec.name,
                "steps": progress.step,
                "clips_per_epoch": task.order.rows_per_epoch,
                "trail": f"{progress.trail:016x}",
                "skipped_steps": progress.bad_steps,
                "work_seconds": progress.work_seconds,
                "data_wait_seconds": progress.wait_seconds,
                "commit_seconds": progress.commit_seconds,
                "workers": session.world_size,
                "metrics": progress.metrics,
                "finished_at": time.time(),
            }
        )
        trainer.committer.clear()
    session.gather(None)  # nobody goes on before the artifact stands
