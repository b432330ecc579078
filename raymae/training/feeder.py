"""A rank's steps, prepared ahead of the training step by a thread: read, decided, and on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator

from raymae.training.batches.order import Order
from raymae.training.batches.passes import Passes
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import Group
from raymae.training.step import PreparedStep
from raymae.training.tasks.base import Task

DEPTH = 2
"""Steps that are prepared ahead."""


def plan_passes(task: Task, order: Order, workers: int, *, sharded: bool) -> Passes:
    """How a step's groups are divided into forward passes of at most `micro_batch_size` clips."""
    return Passes(
        most=task.spec.groups_at_once,
        largest=-(-order.slots // workers),
        same_size=task.config.compile,
        same_number=sharded,
    )


def prepare(task: Task, step: int, groups: list[Group], passes: Passes, transfer: Transfer) -> PreparedStep:
    """Decide everything of a rank's part of a step but its arithmetic, and start its copies."""
    batches, counts = [], None
    for clips in passes.clips(groups):
        host, more = task.prepare(clips, transfer)
        counts = more if counts is None else counts + more
        batches.append(transfer.send(transfer.pack(host)))
    assert counts is not None
    fingerprint = sum(group.fingerprint(task.clip_ids) for group in groups)
    return PreparedStep(step, batches, counts, fingerprint)


def prepared_steps(
    task: Task, steps: Iterator[tuple[int, list[Group]]], passes: Passes, transfer: Transfer
) -> Iterator[PreparedStep]:
    """Prepare a rank's steps one after the other."""
    for step, groups in steps:
        yield prepare(task, step, groups, passes, transfer)
