"""The names of what rounds of pseudo-labels repeat: pseudo_label, student, pseudo_label_2, student_2, …"""

from __future__ import annotations

import re
from typing import Literal

REPEATED = ("pseudo_label", "student")
"""The stages of a round, in their order."""


def turn_of(name: str) -> tuple[str, int]:
    """A node's stage and the number of its round, from 1; 1 for what no round repeats."""
    found = re.fullmatch(rf"({'|'.join(REPEATED)})_(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 1)


def round_name(stage: str, turn: int) -> str:
    """What a stage of a round is called."""
    return stage if turn == 1 else f"{stage}_{turn}"


def teacher_of(name: str) -> str:
    """Whose classifier comes before a node's round: the student of the round before, first of all the fine-tuning."""
    turn = turn_of(name)[1]
    return "finetune" if turn == 1 else round_name("student", turn - 1)


def place(name: str, order: tuple[str, ...]) -> tuple[int, int, int]:
    """By what nodes are sorted so that their stages are in `order`, and rounds come one after the other."""
    stage, turn = turn_of(name)
    number = order.index(stage)
    return (order.index(REPEATED[0]), turn, number) if stage in REPEATED else (number, 0, 0)


FINETUNED = ("finetune", "cnn", "student", "consistency")
"""The stages that train a classifier."""

TRAININGS = ("pretrain", *FINETUNED)

Target = Literal["prepare", "pretrain", "finetune", "pseudo_label", "consistency", "evaluate", "register"]

ORDER = ("prepare", "pretrain", "finetune", "cnn", "pseudo_label", "student", "consistency", "evaluate", "register")

NEEDS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "pretrain": ("prepare",),
    "finetune": ("prepare", "pretrain"),
    "cnn": ("prepare", "finetune"),
    "pseudo_label": ("prepare", "finetune"),
    "student": ("prepare", "pretrain", "pseudo_label"),
    "consistency": ("prepare", "finetune"),
    "evaluate": ("prepare", "finetune"),
    "register": ("evaluate",),
}
"""What a stage reads; `Plan.needs` adds what the settings say."""

LEARNERS = {"pseudo_labels": "student", "consistency": "consistency"}
"""By the use of the unlabelled clips (`Config.unlabelled`), the stage that its classifier is."""

DOES = {
    "prepare": "audio to log-mel feature store",
    "pretrain": "masked autoencoder on unlabelled clips",
    "finetune": "classifier on the labelled clips (teacher)",
    "cnn": "baseline: CNN from scratch",
    "pseudo_label": "teacher labels the unlabelled clips",
    "student": "classifier on labels and pseudo-labels",
    "consistency": "classifier on labels and its own guesses",
    "evaluate": "every model on every held-out split",
    "register": "model registry",
}
