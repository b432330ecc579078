"""Whether the training workers of a plan are possible, before anything is computed."""

from __future__ import annotations

from raymae.cluster.room import check_here
from raymae.config import TrainConfig
from raymae.config.stages import STAGES
from raymae.pipeline.plan.plan import Plan


def trained_sections(plan: Plan) -> dict[str, TrainConfig]:
    """The settings of the trainings that have to run, by the section that they are from."""
    config = plan.config
    sections: dict[str, TrainConfig] = {
        "pretrain": config.pretrain,
        "finetune": config.finetune,
        "consistency": config.consistency.training(config.finetune),
    }
    kinds = {STAGES[plan.nodes[name].stage].kind for name in plan.to_do}
    return {name: section for name, section in sections.items() if name in kinds}


def check_workers(plan: Plan) -> None:
    """ValueError where `compute.num_workers` can't share a step, or this machine, where Ray would start, has no room.

    Nothing is asked for where no stage has to be trained.
    """
    compute, sections = plan.config.compute, trained_sections(plan)
    if sections:
        check_here(compute)
    for name, train in sections.items():
        slots = train.global_batch_size // train.micro_batch_size
        if compute.num_workers and slots % compute.num_workers:
            raise ValueError(
                f"compute.num_workers = {compute.num_workers} can't share a step of {name} equally: it has {slots} "
                f"micro-batches (global_batch_size / micro_batch_size = {train.global_batch_size} / "
                f"{train.micro_batch_size}), which must be a multiple of the workers"
            )
