"""Batches on their way to the device: two copies for a forward pass, the clips and everything else in one piece."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymae.models.masking import Drawn

ALIGNMENT = 16
"""Bytes; of every array within the piece, so that it can be viewed as its type."""


@dataclass
class HostBatch:
    """A forward pass in host memory, pinned if there is a GPU."""

    log_mel: Tensor
    """(B, T, F) float16; on the device already where it was made there."""
    drawn: Drawn
    """What is decided ahead of the step, by name."""
    key: int = 0
    """Place of its first clip in the run."""

    @property
    def frames(self) -> NDArray[np.float16]:
        """The clips as an array that shares their memory."""
        return np.asarray(self.log_mel.numpy())


class Place(NamedTuple):
    """Where an array lies in a piece of bytes."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class PackedBatch:
    """A forward pass in host memory as it is copied."""

    log_mel: Tensor
    """(B, T, F) float16."""
    piece: Tensor
    """(n,) uint8: everything else."""
    places: dict[str, Place]
    key: int


@dataclass
class DeviceBatch:
    """A forward pass on the device; call `arrived` before using it."""

    log_mel: Tensor
    """(B, T, F) float16."""
    drawn: dict[str, Tensor]
    key: int = 0
    """Place of its first clip in the run."""
    copied: torch.cuda.Event | None = None
    pieces: list[Tensor] = field(default_factory=list)

    def arrived(self) -> DeviceBatch:
        """Make the device's current work wait for the copies; the host doesn't wait."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.log_mel.device)
            stream.wait_event(self.copied)
            for piece in self.pieces:
                piece.record_stream(stream)
            self.copied = None
        return self


class Transfer:
    """Copies batches to a device, on a GPU by a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda" and torch.cuda.is_available()
        # what is ahead of the step but waited for (raymae.training.tasks.device_inputs) goes before the step's kernels
        self.stream = torch.cuda.Stream(device, priority=-1) if self.on_gpu else None

    def empty(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        """Host memory for a batch, pinned if there is a GPU: torch uses it again once its copy is made."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.on_gpu)

    def in_stream(self) -> AbstractContextManager[Any]:
        """A context in which the device's work is part of the stream of the copies."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def copy(self, values: NDArray[Any]) -> Tensor:
        """Start the copy of a small array."""
        host = self.empty(*values.shape, dtype=_TYPES[values.dtype.name])
        host.numpy()[...] = values
        return host.to(self.device, non_blocking=True)

    def pack(self, batch: HostBatch) -> PackedBatch:
        """Put everything but the clips into one piece of host memory."""
        places, size = {}, 0
        for name, values in batch.drawn.items():
            places[name] = Place(size, values.nbytes, _TYPES[values.dtype.name], values.shape)
            size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        piece = self.empty(size, dtype=torch.uint8)
        memory = piece.numpy()
        for name, values in batch.drawn.items():
            start = places[name].start
            memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)[...] = values
        return PackedBatch(batch.log_mel, piece, places, batch.key)

    def send(self, batch: PackedBatch) -> DeviceBatch:
        """Start the copies of a batch."""
        if self.stream is None:
            sent = [one.to(self.device, non_blocking=True) for one in (batch.log_mel, batch.piece)]
            return DeviceBatch(sent[0], _views(sent[1], batch.places), batch.key)
        with torch.cuda.stream(self.stream):
            sent = [one.to(self.device, non_blocking=True) for one in (batch.log_mel, batch.piece)]
            event = torch.cuda.Event()
            event.record(self.stream)
        return DeviceBatch(sent[0], _views(sent[1], batch.places), batch.key, event, sent)


def _views(piece: Tensor, places: dict[str, Place]) -> dict[str, Tensor]:
    return {
        name: piece[one.start : one.start + one.size].view(one.dtype).view(one.shape) for name, one in places.items()
    }


_TYPES = {
    "bool": torch.bool,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
}
