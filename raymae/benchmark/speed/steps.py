"""Timed work of `train-step`: matrix products, and pre-training steps as in the training loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raymae.config import AudioConfig, ModelConfig, PretrainConfig
from raymae.models import MODELS, choose_attention
from raymae.training.batches.windows import MicroBatch
from raymae.training.optim import adamw, clip_gradients

Side = tuple[Callable[[], object], int]
"""A callable, and its number of calls per turn."""


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
    """A model with its optimizer, and the one batch that it trains on.

    Args:
        model: model sizes.
        shape: (B, T, F) of a batch.
        device: name of the torch device.
        precision: as in `TrainConfig.precision`.
        compiled: use torch.compile.
        fused: use fused attention kernels.
    """

    def __init__(
        self,
        model: ModelConfig,
        shape: tuple[int, int, int],
        device: str,
        *,
        precision: Literal["fp32", "bf16"],
        compiled: bool = False,
        fused: bool = True,
    ) -> None:
        self.device, self.fused = torch.device(device), fused
        self.autocast = precision == "bf16"
        network = MODELS[model.name](AudioConfig(n_mels=shape[2]), model).to(self.device)
        choose_attention(network, self.device, precision)
        if not fused:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # otherwise it computes in float32
            for module in network.modules():
                if hasattr(module, "fused_attn"):  # timm's switch
                    module.fused_attn = False  # type: ignore[assignment]
        config = PretrainConfig(lr=1e-4)
        self.optimizer = adamw(network.parameter_groups(config.weight_decay), config)
        self.network = network
        self.called: torch.nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
        log_mel = np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(np.float16)
        frames = np.full(shape[0], shape[1], np.int32)
        self.batch = MicroBatch(0, np.arange(shape[0]), log_mel, frames)
        self.input = self.batch.to_torch(self.device)

    def on_device(self) -> None:
        """Run a step on a batch that is already on the device."""
        self.step(*self.input)

    def fed(self) -> None:
        """Run a step on a batch in host memory, copied as in the stages."""
        self.step(*self.batch.to_torch(self.device))

    def step(self, log_mel: Tensor, valid_frames: Tensor) -> None:
        """Forward, backward and update; as in the training loop, the gradient norm is checked before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._contexts():
            loss = self.called(log_mel, valid_frames).loss
        loss.backward()
        if torch.isfinite(clip_gradients(self.network.parameters(), None)):
            self.optimizer.step()

    def _contexts(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        if self.autocast:
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
        if not self.fused:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack


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
