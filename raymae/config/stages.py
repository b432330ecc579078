"""The table of stages: one row each, in the order in which they run. Whatever depends on the stage reads its row.

Rounds of pseudo-labels repeat two stages: their nodes are pseudo_label, student, pseudo_label_2, student_2, …
To add a stage, write its row here, its key inputs in `raymae.pipeline.plan.keys` and its body: a task in
`raymae.training.tasks` for a stage that trains, else a function in `raymae.pipeline.bodies`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raymae.config.unlabelled import Unlabelled

Target = Literal["prepare", "pretrain", "finetune", "pseudo_label", "consistency", "evaluate", "register"]
"""The stages that a job ends with."""
Kind = Literal["pretrain", "finetune", "consistency"]
"""The training tasks."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline."""

    does: str
    """What it does, in a plan's line."""
    needs: tuple[str, ...] = ()
    """The stages that it reads; `Plan.needs` adds what the settings ask for."""
    sections: tuple[str, ...] = ()
    """The sections of the configuration that it reads, for MLflow."""
    kind: Kind | None = None
    """The training task; None for a stage that doesn't train."""
    baseline: bool = False
    """Whether it trains another network, in a number of steps of its own (`raymae.pipeline.plan.cnn_steps`)."""
    title: str | None = None
    """The name of its classifier in tables and figures; None for a stage that trains none."""
    encoder_title: str | None = None
    """The name of its classifier's encoder where embeddings are compared."""
    use: Unlabelled | None = None
    """The use of unlabelled clips (`Config.unlabelled`) that its classifier comes from."""
    single_label_only: str | None = None
    """For a stage that multi-label clips can't have: its subject, with its verb, in the error."""
    repeated: bool = False
    """Whether every round of pseudo-labels repeats it."""
    reads_classifiers: bool = False
    """Whether it reads trained classifiers: the ablations' stages run before the first such stage."""
    reports: tuple[str, ...] = ()
    """The pages that it writes, beside its figures."""
    job: str | None = None
    """The job that ends with it, where that has another name."""


STAGES: dict[str, Stage] = {
    "prepare": Stage(does="audio to log-mel feature store", sections=("audio", "data")),
    "pretrain": Stage(
        does="masked autoencoder on unlabelled clips",
        needs=("prepare",),
        sections=("model", "pretrain"),
        kind="pretrain",
    ),
    "finetune": Stage(
        does="classifier on the labelled clips (teacher)",
        needs=("prepare", "pretrain"),
        sections=("model", "finetune"),
        kind="finetune",
        title="MAE, fine-tuned",
        encoder_title="fine-tuned",
    ),
    "cnn": Stage(
        does="baseline: CNN from scratch",
        needs=("prepare",),
        sections=("model", "finetune"),
        kind="finetune",
        baseline=True,
        title="CNN from scratch",
    ),
    "pseudo_label": Stage(
        does="teacher labels the unlabelled clips",
        needs=("prepare", "finetune"),
        sections=("pseudo_label",),
        single_label_only="pseudo-labels are",
        repeated=True,
        reads_classifiers=True,
        reports=("report.md", "report.json"),
    ),
    "student": Stage(
        does="classifier on labels and pseudo-labels",
        needs=("prepare", "pretrain", "pseudo_label"),
        sections=("model", "finetune"),
        kind="finetune",
        title="MAE, with pseudo-labels",
        encoder_title="with pseudo-labels",
        use="pseudo_labels",
        repeated=True,
    ),
    "consistency": Stage(
        does="classifier on labels and its own predictions",
        needs=("prepare", "finetune"),
        sections=("model", "finetune", "consistency"),
        kind="consistency",
        title="MAE, with consistency training",
        encoder_title="with consistency training",
        use="consistency",
        single_label_only="consistency training is",
    ),
    "evaluate": Stage(
        does="every model on every held-out split",
        needs=("prepare", "finetune"),
        sections=("evaluate",),
        reads_classifiers=True,
        reports=("report.md", "report.html", "report.json"),
    ),
    "register": Stage(does="model registry", needs=("evaluate",), sections=("tracking",), job="pipeline"),
}

TRAININGS = tuple(name for name, stage in STAGES.items() if stage.kind)
"""The stages that train."""
CLASSIFIERS = tuple(name for name, stage in STAGES.items() if stage.title)
"""The stages that train a classifier."""


def stage_of_use(use: Unlabelled) -> str:
    """The stage that trains the classifier of a use of the unlabelled clips."""
    return next(name for name, stage in STAGES.items() if stage.use == use)


def requires(target: str, stage: str) -> bool:
    """Whether a job that ends with `target` needs a stage, by the table alone."""
    return target == stage or any(requires(needed, stage) for needed in STAGES[target].needs)


# Rounds of pseudo-labels ---------------------------------------------------------------------------------------------


def turn_of(name: str) -> tuple[str, int]:
    """A node's stage and the number of its round, from 1; 1 for a stage that isn't repeated."""
    stage, _, number = name.rpartition("_")
    if stage in STAGES and STAGES[stage].repeated and re.fullmatch(r"\d+", number):
        return stage, int(number)
    return name, 1


def round_name(stage: str, turn: int) -> str:
    """The name of a stage's node in a round."""
    return stage if turn == 1 else f"{stage}_{turn}"


def teacher_of(name: str) -> str:
    """The node whose classifier a round starts from: the student of the round before, or the fine-tuned one."""
    turn = turn_of(name)[1]
    return "finetune" if turn == 1 else round_name("student", turn - 1)


def place(name: str) -> tuple[int, int, int]:
    """The sort key of a node: stages in the order of the table, rounds one after the other."""
    stage, turn = turn_of(name)
    order = list(STAGES)
    if not STAGES[stage].repeated:
        return order.index(stage), 0, 0
    first = next(number for number, other in enumerate(order) if STAGES[other].repeated)
    return first, turn, order.index(stage)
