"""Timed work of `train-step`: matrix products, and steps of a training stage by the product's own `TrainStep`."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from raymae.training import parallel
from raymae.training.batches.transfer import Transfer
from raymae.training.batches.windows import ahead
from raymae.training.feeder import DEPTH, plan_passes, prepare, prepared_steps
from raymae.training.optim import adamw
from raymae.training.run_stage import build_task
from raymae.training.spec import StageSpec
from raymae.training.step import PreparedStep, TrainStep
from raymae.training.worker import BareSession, prepare_model, prepare_process

Side = tuple[Callable[[], object], int]
"""A callable, and its number of calls per turn."""
SHARE = 0.5
"""The share of the run that is said to be done at every step."""


class Product:
    """Product of two square matrices."""

    def __init__(self, size: int, device: str, dtype: torch.dtype) -> None:
        self.gflop = 2 * size**3 / 1e9
        self.one, self.other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self.out = torch.empty_like(self.one)

    def __call__(self) -> None:
        """Multiply."""
        torch.mm(self.one, self.other, out=self.out)


class Stepper:
    """Steps of a stage on one batch in this process, without the loop around them.

    Args:
        spec: the stage; its settings say what is compiled, and how many clips a step and a pass have.
        device: name of the torch device.
        fused: use fused attention kernels.
    """

    def __init__(self, spec: StageSpec, device: str, *, fused: bool = True) -> None:
        self.device, self.fused = torch.device(device), fused
        session = BareSession(spec.store, spec.artifact, device)
        prepare_process(self.device, spec.config.compute)
        self.task = task = build_task(spec)
        prepare_model(task.model, self.device, task.config)
        if not fused:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # otherwise it computes in float32
            for module in task.model.modules():
                if hasattr(module, "fused_attn"):  # timm's switch
                    module.fused_attn = False  # type: ignore[assignment]
        wrapped, order = session.wrap(task.model, task.config.precision), task.order
        statistics = parallel.RunningStatistics(task.model, order.slots, range(order.slots))
        optimizer = adamw(task.parameter_groups(), task.config)
        self.train_step = TrainStep(task, task.model, wrapped, optimizer, statistics, self.device)
        self.transfer, self.passes = Transfer(self.device), plan_passes(task, order, 1, sharded=False)
        self.groups = next(session.groups(order, 0))[1]
        self.batch = self.prepare()
        self._fed: Iterator[PreparedStep] | None = None

    def prepare(self) -> PreparedStep:
        """Decide all of the step but its arithmetic, and copy it to the device."""
        return prepare(self.task, 0, self.groups, self.passes, self.transfer)

    def on_device(self) -> None:
        """Run a step on the batch that is already on the device."""
        self._run(self.batch)

    def fed(self) -> None:
        """Run a step on the batch in host memory, prepared ahead by a thread as in the stages."""
        if self._fed is None:
            steps = ((step, self.groups) for step in itertools.count())
            self._fed = ahead(prepared_steps(self.task, steps, self.passes, self.transfer), DEPTH)
        self._run(next(self._fed))

    def loss(self) -> float:
        """The last step's loss, NaN if it wasn't finite; waits for the device."""
        return self.train_step.read().get("loss", math.nan)

    def _run(self, prepared: PreparedStep) -> None:
        attention: AbstractContextManager[Any] = nullcontext() if self.fused else sdpa_kernel(SDPBackend.MATH)
        with attention:
            self.train_step.run(prepared, SHARE)


def take_turns(sides: Mapping[str, Side], repetitions: int, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall seconds and CPU seconds per call of each side; the sides alternate.

    Args:
        sides: callables; on a GPU the calls of a turn are queued and timed together, elsewhere one by one.
        repetitions: timed turns, after an untimed one.
        device: name of the torch device.
    """
    queued = torch.device(device).type == "cuda"
    wall: dict[str, list[float]] = {name: [] for name in sides}
    used: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repetitions + 1):
        for name, (call, count) in sides.items():
            timings, calls = (1, count) if queued else (count, 1)
            for _ in range(timings):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                for _ in range(calls):
                    call()
                if queued:
                    torch.cuda.synchronize(device)
                if turn:
                    wall[name].append((time.perf_counter() - begun) / calls)
                    used[name].append((time.process_time() - begun_cpu) / calls)
    return {n: statistics.median(v) for n, v in wall.items()}, {n: statistics.median(v) for n, v in used.items()}


def device_name(device: str) -> str:
    """Name of the GPU; for other devices, the device string."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
