"""Training workers joined by `torch.distributed`: what each holds of the model, and what they have to agree on.

With one worker everything here is plain: the model is itself, and nothing is sent.
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
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """`value` of every rank, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wrap(model: nn.Module, device: torch.device, mode: Mode) -> nn.Module:
    """The model on its device, made to average its gradients over the workers.

    Args:
        model: the same weights on every rank; one without gradients (averaged weights) has nothing to average and is
            only moved or sharded.
        mode: ddp, every worker holds all of it; fsdp, see `shard`.
    """
    if world_size() > 1 and mode == "fsdp":
        return shard(model, device)
    model = model.to(device)
    if world_size() == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a model over the workers in place (FSDP2): the blocks of its lists one by one, then what is left.

    Weights, gradients and what is made from them are float32 shards; a block's weights are whole only while it
    computes, so autocast gives the numbers that it gives with ddp. Gradients are averaged after every micro-batch,
    since whole ones would have to wait for the last.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # nothing changes in place what a model returns; said at every forward pass
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
    """Let go of the whole weights that a sharded model keeps after a forward pass which no backward pass follows."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()


def full(value: Tensor) -> Tensor:
    """A tensor, or all of a sharded one, for which every rank has to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor that every rank has, laid out in memory and sharded as `parameter` is, if it has its shape.

    Fused AdamW reads weights and moments side by side, whatever their strides: channels_last would meet the wrong ones.
    """
    if value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):  # nothing is sent: ranks may come with their tensors in any order
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return torch.zeros_like(parameter.detach()).copy_(value)


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model that isn't sharded yet, without the memory of its weights."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, memo)


@torch.no_grad()
def whole(model: nn.Module, empty: nn.Module, device: torch.device) -> nn.Module:
    """The model itself or, where it is sharded, a plain copy made of `empty` (see `hollow`); every rank has to ask."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    copied = copy.deepcopy(empty)
    copied.load_state_dict({name: full(value) for name, value in model.state_dict().items()}, assign=True)
    return copied.to(device)


class StepSums(nn.Module):
    """Running statistics that move once a step, by sums over the clips of all its micro-batches on all workers.

    So every micro-batch of a step meets the same statistics, those after the step before it, whoever computes it.

    Args:
        size: how many numbers are summed up in `sums`; float64, in which their order makes no difference that counts.
    """

    sums: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # not part of a commit: between two steps there is nothing in it
        self.register_buffer("sums", torch.zeros(size, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def move(self) -> None:
        """Move the statistics by what was summed up, unless it isn't finite, as the gradient isn't then."""
        if torch.isfinite(self.sums).all():
            self.settle(self.sums)
        self.sums.zero_()

    def settle(self, sums: Tensor) -> None:
        """Move the statistics by the sums of a step."""
        raise NotImplementedError


class RunningStatistics:
    """The running statistics of a model's batch norms, as one worker would have them, and its `StepSums`.

    One worker sees the micro-batches s = 0 … S - 1 of a step in turn and moves each statistic r by the momentum m:
    r <- (1 - m)^S r + m sum_s (1 - m)^(S - 1 - s) x_s. Of W workers, rank k sees those with s mod W = k. With the
    momentum M = 1 - (1 - m)^W each, the same r is the sum of theirs with the weights (1 - m)^(W - 1 - k) m / M.
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
        if norm.momentum is not None:  # none: a plain mean of all that was seen
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
        """Make them those of one worker; every rank calls it after the last micro-batch of a step."""
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
