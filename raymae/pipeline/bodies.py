"""The bodies of the stages that read classifiers; how they read, over a cluster or in one process, is a `Reader`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raymae.pipeline import evaluate
from raymae.pipeline.evaluate import Reader
from raymae.pipeline.plan.plan import Node, Plan
from raymae.pipeline.pseudo_label import run_round


def pseudo_label(plan: Plan, node: Node, reader: Reader) -> dict[str, Any]:
    """A round of pseudo-labels."""
    seconds, views = [0.0], plan.config.pseudo_label.views

    def timed(found: tuple[Any, float]) -> Any:
        values, spent = found
        seconds[0] += spent
        return values["teacher"]

    result = run_round(
        plan,
        node.name,
        lambda rows, teacher: timed(reader.classify(rows, {"teacher": teacher}, views)),
        lambda rows, reading: timed(reader.embed(rows, {"teacher": reading})),
    )
    return result | {"work_seconds": seconds[0]}


BODIES: dict[str, Callable[[Plan, Node, Reader], dict[str, Any]]] = {
    "pseudo_label": pseudo_label,
    "evaluate": lambda plan, node, reader: evaluate.evaluate(plan, reader),
}
"""By stage: writes its artifact, and returns its result with `work_seconds`."""
