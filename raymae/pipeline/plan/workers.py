"""Whether the training workers of a plan are possible, before anything is computed."""

from __future__ import annotations

from raymae.cluster.resources.room import check_here
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
    """ValueError where this machine, where Ray would start, has no room for the workers that are asked for.

    Nothing is asked for where no stage has to be trained.
    """
    if trained_sections(plan):
        check_here(plan.config.compute)
