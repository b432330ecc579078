"""What stays in the embeddings: how well device, city and scene can be read from them before and after each stage.

Every stage's encoder is read in one way, that of the classifier: its network, segments, centring, last block and
pooling. Only the weights differ. Works without Ray.
"""

from __future__ import annotations

from dataclasses import replace

from raymae.config.stages import turn_of
from raymae.inference.embedder import Reading
from raymae.plan import Plan
from raymae.storage.folder import Folder

STAGES = {
    "finetune": "fine-tuned",
    "student": "with pseudo-labels",
    "consistency": "with consistency training",
}


def readings(plan: Plan) -> dict[str, Reading]:
    """The encoders of a plan's stages by what they are called: random, pre-trained (or given), fine-tuned, student.

    Where the classifier centres its input, which alone takes much of the device away, the first two are read both ways.
    """
    classifier, config = plan.nodes["finetune"].artifact, plan.config.finetune
    first: dict[str, Folder | None] = {"random weights": None}
    if "pretrain" in plan.nodes:
        first["pre-trained"] = plan.nodes["pretrain"].artifact
    elif "finetune" in plan.given:
        first["given weights"] = plan.given["finetune"].artifact
    found = {title: Reading(classifier, weights, False, config.pool) for title, weights in first.items()}
    if config.centre:
        found |= {f"{title}, input centred": replace(reading, centred=True) for title, reading in found.items()}
    for name, node in plan.nodes.items():
        stage, turn = turn_of(name)
        if stage in STAGES:
            title = STAGES[stage] + (f", round {turn}" if turn > 1 else "")
            found[title] = Reading(classifier, node.artifact, config.centre, config.pool)
    return found
