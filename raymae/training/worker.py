"""What the training loop sees of the world, and the sessions of Python processes without Ray.

Ray Train's session is in `raymae.cluster.train`; all give the same micro-batches for the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from raymae.features.store import FeatureStore
from raymae.storage.events import write_event
from raymae.storage.folder import Folder
from raymae.training import parallel
from raymae.training.batches.order import Order
from raymae.training.batches.windows import MicroBatch, ahead, micro_batches, read_window


class Session(Protocol):
    """A training worker's view of the world."""

    rank: int
    world_size: int
    torch_device: torch.device

    def batches(self, order: Order, step: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches from `step` on, in the order of the steps."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on the session's device, made to average its gradients over the workers.

        The weights of the model itself (and of one without gradients, an average) may be sharded from then on.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank."""
        ...

    def preemption_time(self) -> float | None:
        """Unix time at which a node of the workers is taken away, where that is announced; infinity where it isn't
        said when. Called by every rank."""
        ...

    def can_grow(self) -> bool:
        """Whether more workers could take part from a commit on; rank 0's answer counts."""
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
        """This process's micro-batches: all of them, where it is alone."""
        numbers = range(order.first_window(step) + self.rank, order.windows, self.world_size)
        windows = ahead((read_window(self.store, order, number) for number in numbers), order.slots)
        return micro_batches(order, windows, self.rank, self.world_size, step)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model itself: there is nobody to average with."""
        return model.to(self.torch_device)

    def gather(self, value: Any) -> list[Any]:
        """The value, alone."""
        return [value]

    def preemption_time(self) -> float | None:
        """Nobody announces anything here."""
        return None

    def can_grow(self) -> bool:
        """The number of processes is fixed."""
        return False

    def report(self, event: dict[str, Any]) -> None:
        """Write the event."""
        write_event(self.artifact, {"time": time.time(), **event})


class GroupSession(BareSession):
    """One of several Python processes without Ray, joined by `torch.distributed` as `torchrun` starts them.

    Every process opens the store and reads its own windows of it; the process group has to stand.

    Args:
        torch_device: this process's own, such as "cuda:1".
        mode: what each process holds, see `ComputeConfig.parallel`.
    """

    def __init__(
        self, store: FeatureStore, artifact: Folder, torch_device: str = "cpu", mode: parallel.Mode = "ddp"
    ) -> None:
        super().__init__(store, artifact, torch_device)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.mode: parallel.Mode = mode
        if self.torch_device.type == "cuda":
            torch.cuda.set_device(self.torch_device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, as `mode` says."""
        return parallel.wrap(model, self.torch_device, self.mode)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank."""
        return parallel.gather(value)

    def report(self, event: dict[str, Any]) -> None:
        """Write the event, once."""
        if self.rank == 0:
            super().report(event)
