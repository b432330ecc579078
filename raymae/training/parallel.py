"""Data-parallel training with `torch.distributed`: DDP or FSDP2 of the model, and collectives between the workers.

With one worker everything here is plain: the model is returned as it is, and nothing is sent.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

Mode = Literal["ddp", "fsdp"]


def world_size() -> int:
    """The number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """All-gather a picklable value: that of every rank, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean_metrics(found: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the ranks that have it."""
    names = {name: [metrics[name] for metrics in found if name in metrics] for metrics in found for name in metrics}
    return {name: sum(values) / len(values) for name, values in names.items()}


def wrap(model: nn.Module, device: torch.device, mode: Mode) -> nn.Module:
    """Move the model to its device and make it average its gradients over the workers.

    Args:
        model: the same weights on every rank; one without gradients (EMA weights) has nothing to average and is only
            moved or sharded.
        mode: ddp, every worker holds the whole model; fsdp, see `shard`.
    """
    if world_size() > 1 and mode == "fsdp":
        return shard(model, device)
    model = model.to(device)
    if world_size() == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a model over the workers in place (FSDP2): each block of its module lists, then the rest.

    Weights, gradients and optimiser state are float32 shards; a block's weights are gathered only while it computes, so
    autocast gives the same numbers as with ddp. Gradients are averaged after every micro-batch: unsharded ones would
    have to be kept until the last.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # no caller changes a model's output in place; without the filter it would warn at every forward pass
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # channels_last can't be sharded
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)  # type: ignore[arg-type]
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for inner in reversed(lists) for block in inner):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that a sharded model keeps after a forward pass without a backward pass."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()


def full(value: Tensor) -> Tensor:
    """The tensor, gathered if it is sharded; collective then."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Give a tensor that every rank has in full the memory layout and sharding of `parameter`, if it has its shape.

    Fused AdamW reads weights and moments side by side and ignores strides: with channels_last it would pair the wrong
    ones.
    """
    if value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):  # nothing is sent: ranks may call this in any order of their tensors
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return torch.zeros_like(parameter.detach()).copy_(value)


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that isn't sharded yet, with its parameters on the meta device: without their memory."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


@torch.no_grad()
def unsharded(model: nn.Module, empty: nn.Module, device: torch.device) -> nn.Module:
    """The model itself or, if it is sharded, a plain copy made from `empty` (see `meta_copy`); collective then."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copied = copy.deepcopy(empty)
    copied.load_state_dict({name: full(value) for name, value in model.state_dict().items()}, assign=True)
    return copied.to(device)


class StepSums(nn.Module):
    """Running statistics that are updated once a step, by sums over the clips of all its micro-batches on all workers.

    So every micro-batch of a step uses the same statistics, those after the previous step, on whatever worker.

    Args:
        size: how many numbers `sums` holds; float64, so that the order of summation makes no difference that matters.
    """

    sums: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # not part of a checkpoint: it is all zeros between two steps
        self.register_buffer("sums", torch.zeros(size, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def move(self) -> None:
        """Update the statistics by the sums, unless these (and so the gradient) aren't finite, and reset the sums."""
        if torch.isfinite(self.sums).all():
            self.update(self.sums)
        self.sums.zero_()

    def update(self, sums: Tensor) -> None:
        """Update the statistics by the sums of a step."""
        raise NotImplementedError


class RunningStatistics:
    """The running statistics of a model's batch norms, kept as a single worker would have them, and its `StepSums`.

    A single worker gets the micro-batches s = 0 … S - 1 of a step in turn and moves each statistic r by the momentum m:
    r <- (1 - m)^S r + m sum_s (1 - m)^(S - 1 - s) x_s. Of W workers, rank k gets those with s mod W = k. With the
    momentum M = 1 - (1 - m)^W on each, r is the weighted sum of theirs, with the weights (1 - m)^(W - 1 - k) m / M.
    """

    def __init__(self, model: nn.Module) -> None:
        self.workers = world_size()
        self.values: list[Tensor] = []
        self.weights: list[float] = []
        self.counts: list[Tensor] = []
        for norm in model.modules() if self.workers > 1 else ():
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                self._add(norm)
        self.counted = [count.clone() for count in self.counts]
        self.step_sums = [module for module in model.modules() if isinstance(module, StepSums)]

    def _add(self, norm: _BatchNorm) -> None:
        weight = 1 / self.workers
        if norm.momentum is not None:  # None: a plain mean over all batches
            kept = 1 - norm.momentum
            weight = kept ** (self.workers - 1 - dist.get_rank()) * norm.momentum / (1 - kept**self.workers)
            norm.momentum = 1 - kept**self.workers
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        self.values += [norm.running_mean, norm.running_var]
        self.weights += [weight, weight]
        self.counts.append(norm.num_batches_tracked)

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the workers' statistics; called by every rank after the last micro-batch of a step."""
        for one in self.step_sums:
            if self.workers > 1:
                dist.all_reduce(one.sums)
            one.move()
        if not self.values:
            return
        merged = torch.cat([value * weight for value, weight in zip(self.values, self.weights, strict=True)])
        dist.all_reduce(merged)
        torch._foreach_copy_(self.values, list(merged.split([len(value) for value in self.values])))
        for count, before in zip(self.counts, self.counted, strict=True):
            count += (self.workers - 1) * (count - before)
            before.copy_(count)
