"""The names of what rounds of pseudo-labels repeat: pseudo_label, student, pseudo_label_2, student_2, …"""

from __future__ import annotations

import re

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
