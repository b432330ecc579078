"""What the training loop sees of the world, and the session of a bare Python process.

Ray Train's session is in `raymae.launch`; both give the same micro-batches for the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from raymae.artifacts import Folder, write_event
from raymae.order import Order
from raymae.store import FeatureStore
from raymae.windows import MicroBatch, ahead, micro_batches, read_window


class Session(Protocol):
    """A training worker's view of the world."""

    rank: int
    world_size: int
    torch_device: torch.device

    def batches(self, order: Order, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches from `step` on, in the order of the steps."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model made to average its gradients over the workers."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        ...

    def report(self, event: dict[str, Any]) -> None:
        """Pass on the metrics of a step; called by every rank."""
        ...


class BareSession:
    """One Python process without Ray: reads the store in a thread, ahead of the training step."""

    rank = 0
    world_size = 1

    def __init__(self, store: FeatureStore, artifact: Folder, torch_device: str = "cpu") -> None:
        self.store, self.artifact = store, artifact
        self.torch_device = torch.device(torch_device)

    def batches(self, order: Order, step: int) -> Iterator[MicroBatch]:
        """This process's micro-batches: all of them."""
        numbers = range(order.first_window(step), order.windows)
        windows = ahead((read_window(self.store, order, number) for number in numbers), order.slots)
        return micro_batches(order, windows, 0, 1, step)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself: there is nobody to average with."""
        return model

    def gather(self, value: Any) -> list[Any]:
        """The value, alone."""
        return [value]

    def report(self, event: dict[str, Any]) -> None:
        """Write the event."""
        write_event(self.artifact, {"time": time.time(), **event})
