"""Data-parallel training with `torch.distributed`: DDP or FSDP2 of the model, and collectives between the workers.

With one worker everything here is plain: the model is returned as it is, and nothing is sent.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from raymae.models.encoder import Precision

Mode = Literal["ddp", "fsdp"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the forward pass, where that isn't float32."""


def world_size() -> int:
    """The number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_group() -> Any:
    """A group of all workers for the collectives of another thread, which would mix with those of the training step;
    None with one worker. Called by every rank."""
    return dist.new_group(backend="gloo") if world_size() > 1 else None


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """All-gather a picklable value: that of every rank, on every rank; by the training thread, or in a `group` of the
    calling thread's own.

    Over gloo, also where gradients go over NCCL (`raymae.cluster.process_group`): the GPU isn't waited for.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values


def sum_over_workers(values: Tensor) -> Tensor:
    """The sum over all workers, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def wrap(
    model: nn.Module, device: torch.device, mode: Mode, precision: Precision = "fp32", replicas: int = 1
) -> nn.Module:
    """Move the model to its device and make it average its gradients over the workers.

    Args:
        model: the same weights on every rank; one without gradients (EMA weights) has nothing to average and is only
            moved or sharded.
        mode: ddp, every worker holds the whole model; fsdp, see `shard`.
        precision: of the weights that fsdp gathers: as the forward pass computes.
        replicas: for fsdp, in how many groups of workers each holds all shards.
    """
    if world_size() > 1 and mode == "fsdp":
        return shard(model, device, precision, replicas)
    model = model.to(device)
    if world_size() == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def shard(model: nn.Module, device: torch.device, precision: Precision, replicas: int) -> nn.Module:
    """Shard a model over the workers in place (FSDP2): each block of its module lists, then the rest.

    Weights, gradients and optimiser state are float32 shards; a block's weights are gathered only while it computes, on
    GPUs in the forward pass's precision, and gradients are reduced in float32. With several `replicas` the shards are
    spread over world size / replicas neighbouring workers, and gradients are averaged over the groups of them.

    ValueError if the workers can't be divided into so many groups.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # no caller changes a model's output in place; without the filter it would warn at every forward pass
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # channels_last can't be sharded
    workers = world_size()
    if workers % replicas:
        raise ValueError(f"compute.fsdp_replicas = {replicas} must divide the {workers} workers")
    shape, names = (
        ((replicas, workers // replicas), ("replicate", "shard")) if replicas > 1 else ((workers,), ("shard",))
    )
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    # inputs keep their type: autocast casts them where it should, and log-mels are also what the loss compares with
    # on CPUs autocast leaves layer norms alone, which want weights of their input's type
    gathered = DTYPES.get(precision) if device.type == "cuda" else None
    policy = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for inner in reversed(lists) for block in inner):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def reduce_gradients(model: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """The context of a pass whose gradients are averaged over the workers: once a step, `now` being its last pass."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif not now and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def is_sharded(model: nn.Module) -> bool:
    """Whether the workers hold shares of the model's weights, which they gather in every pass."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


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
    if not is_sharded(model):
        return model
    copied = copy.deepcopy(empty)
    copied.load_state_dict({name: full(value) for name, value in model.state_dict().items()}, assign=True)
    return copied.to(device)


class StepSums(nn.Module):
    """Running statistics that are updated once a step, by sums over its clips, of all passes on all workers.

    So every pass of a step uses the same statistics, those after the previous step, on whatever worker.

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
        finite = torch.isfinite(self.sums).all()
        before = [one.clone() for one in self.buffers()]
        self.update(self.sums)
        for one, old in zip(self.buffers(), before, strict=True):
            one.copy_(torch.where(finite, one, old))
        self.sums.zero_()

    def update(self, sums: Tensor) -> None:
        """Update the statistics by the sums of a step."""
        raise NotImplementedError


class RunningStatistics:
    """The running statistics of a model's batch norms, kept as a single worker would have them, and its `StepSums`.

    A single worker gets the mixing groups s = 0 … S - 1 of a step in turn, each a batch of its own, and moves each
    statistic r by the momentum m: r <- (1 - m)^S r + m sum_s (1 - m)^(S - 1 - s) x_s. A worker with the groups
    a <= s < b gets r_k from the same r; all of them together are (1 - m)^S r + sum_k (1 - m)^(S - b) (r_k - (1 -
    m)^(b - a) r).

    Args:
        slots: mixing groups of a step.
        own: the worker's.
    """

    def __init__(self, model: nn.Module, slots: int, own: range) -> None:
        self.slots, self.own = slots, own
        norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
        self.norms = norms if world_size() > 1 else []
        for norm in self.norms:
            if norm.momentum is None:  # a plain mean over all batches
                raise NotImplementedError("a batch norm without momentum")
        self.before = [one.clone() for one in self._values()]
        self.step_sums = [module for module in model.modules() if isinstance(module, StepSums)]

    def _values(self) -> list[Tensor]:
        found = [(norm.running_mean, norm.running_var) for norm in self.norms]
        return [value for pair in found for value in pair if value is not None]

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the workers' statistics; called by every rank after the last pass of a step."""
        for one in self.step_sums:
            sum_over_workers(one.sums)
            one.move()
        if not self.norms:
            return
        values, rank = self._values(), dist.get_rank()
        moved = []
        momenta = [float(norm.momentum or 0.0) for norm in self.norms for _ in range(2)]
        for value, before, momentum in zip(values, self.before, momenta, strict=True):
            kept = 1 - momentum
            own = kept ** (self.slots - self.own.stop) * (value - kept ** len(self.own) * before)
            moved.append(own + kept**self.slots * before if rank == 0 else own)
        merged = sum_over_workers(torch.cat(moved))
        torch._foreach_copy_(values, list(merged.split([len(value) for value in values])))
        torch._foreach_copy_(self.before, values)
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += self.slots - len(self.own)
