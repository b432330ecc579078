"""The interface between the training loop and its environment, and its implementations without Ray.

Ray Train's session is in `raymae.cluster.train`; all sessions yield the same mixing groups for the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from raymae.config import ComputeConfig, TrainConfig
from raymae.features.store import FeatureStore
from raymae.models import Encoder, choose_attention
from raymae.models.decoder import ConvDecoder, GlobalDecoder, LocalDecoder
from raymae.models.encoder import Precision
from raymae.storage.commits import resumable
from raymae.storage.events import EventWriter
from raymae.storage.folder import Folder
from raymae.training import parallel
from raymae.training.batches.order import Order
from raymae.training.batches.windows import Group, read_groups


class Session(Protocol):
    """A training worker's environment: its rank, its data and the collectives with other workers."""

    rank: int
    world_size: int
    torch_device: torch.device

    def resumes_from(self) -> str | None:
        """Name of the checkpoint that the run resumes from, or None; rank 0's answer counts."""
        ...

    def groups(self, order: Order, step: int) -> Iterator[tuple[int, list[Group]]]:
        """Iterate over this rank's mixing groups of every step from `step` on: (step, groups)."""
        ...

    def wrap(self, model: nn.Module, precision: Precision) -> nn.Module:
        """Move the model to the session's device and make it average its gradients over the workers.

        The weights of the model itself (also of one without gradients, such as EMA weights) may be sharded afterwards.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """All-gather a picklable value: that of every rank, on every rank."""
        ...

    def preemption_time(self) -> float | None:
        """Unix time at which a node of the workers is taken away: None while nothing is announced, infinity if the time
        isn't known. Called by every rank."""
        ...

    def can_grow(self) -> bool:
        """Whether more workers could take part after a checkpoint; rank 0's answer counts."""
        ...

    def report(self, event: dict[str, Any]) -> None:
        """Report the metrics of a step, without waiting for the storage; called by every rank."""
        ...

    def reported(self) -> Callable[[], None]:
        """A function that waits until what was reported so far is stored."""
        ...


class BareSession:
    """A single Python process without Ray: reads the store in a thread, ahead of the training step."""

    rank = 0
    world_size = 1

    def __init__(self, store: FeatureStore, artifact: Folder, torch_device: str = "cpu") -> None:
        self.store, self.artifact = store, artifact
        self.events = EventWriter(artifact)
        self.torch_device = torch.device(torch_device)

    def resumes_from(self) -> str | None:
        """The newest checkpoint whose files are all there."""
        return resumable(self.artifact) if self.rank == 0 else None

    def groups(self, order: Order, step: int) -> Iterator[tuple[int, list[Group]]]:
        """Iterate over this process's mixing groups of every step: all of them for a single process."""
        return read_groups(self.store, order, self.rank, self.world_size, step)

    def wrap(self, model: nn.Module, precision: Precision) -> nn.Module:
        """Move the model to the device; there are no other workers."""
        return model.to(self.torch_device)

    def gather(self, value: Any) -> list[Any]:
        """A list of the value alone."""
        return [value]

    def preemption_time(self) -> float | None:
        """None: nothing announces preemptions here."""
        return None

    def can_grow(self) -> bool:
        """False: the number of processes is fixed."""
        return False

    def report(self, event: dict[str, Any]) -> None:
        """Write the event to the artifact, in the background."""
        self.events.write({"time": time.time(), **event})

    def reported(self) -> Callable[[], None]:
        """A function that waits for the events so far."""
        return self.events.so_far()


class GroupSession(BareSession):
    """One of several Python processes without Ray, joined by `torch.distributed`, as `torchrun` starts them.

    Every process opens the store and reads its own windows; the process group has to be initialised.

    Args:
        torch_device: this process's device, such as "cuda:1".
        compute: what each process holds (`parallel`, `fsdp_replicas`).
    """

    def __init__(
        self,
        store: FeatureStore,
        artifact: Folder,
        torch_device: str = "cpu",
        compute: ComputeConfig | None = None,
    ) -> None:
        super().__init__(store, artifact, torch_device)
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.compute = compute or ComputeConfig()
        if self.torch_device.type == "cuda":
            torch.cuda.set_device(self.torch_device)

    def wrap(self, model: nn.Module, precision: Precision) -> nn.Module:
        """Wrap the model as `compute` says."""
        compute = self.compute
        return parallel.wrap(model, self.torch_device, compute.parallel, precision, compute.fsdp_replicas)

    def gather(self, value: Any) -> list[Any]:
        """All-gather a picklable value."""
        return parallel.gather(value)

    def report(self, event: dict[str, Any]) -> None:
        """Write the event, on rank 0."""
        if self.rank == 0:
            super().report(event)


def prepare_process(device: torch.device, compute: ComputeConfig) -> None:
    """Set what a training process needs for speed: denormals as zeros, and TF32 on GPUs unless `strict_fp32`.

    They hold for the whole process. Small second moments would slow the optimiser on CPUs several times.
    """
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if compute.strict_fp32 else "high")


def prepare_model(model: nn.Module, device: torch.device, config: TrainConfig) -> None:
    """Choose the faster attention for the device, and compile and checkpoint the blocks as configured."""
    choose_attention(model, device, config.precision)
    for module in model.modules():
        if isinstance(module, (Encoder, ConvDecoder, GlobalDecoder, LocalDecoder)):
            module.checkpointed = config.activation_checkpointing
            if config.compile:
                for block in module.blocks:
                    block.compile(fullgraph=True, dynamic=False, mode=config.compile_mode)
