"""Figures of training steps outside the loop: the peak, a step's time and memory, its kernels and its host's time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from raymae.benchmark.gpu.kernels import kernel_use
from raymae.benchmark.gpu.record import Values
from raymae.benchmark.gpu.sizes import Device, Sizes
from raymae.benchmark.harness.noise_store import CLASSES, noise_stage
from raymae.benchmark.speed.steps import Product, Stepper
from raymae.config import Config
from raymae.config.stages import Kind
from raymae.features.draws import Draws
from raymae.models import grid_size
from raymae.pipeline.dry_run.memory import finetune_memory, pretrain_memory
from raymae.storage.folder import Folder

WARM_STEPS = 3
PRODUCTS = 200
"""Matrix products of a turn: a few tenths of a second, because clocks fall under load."""
HOST_STEPS = 10
DRAWS = 20


def measure_product(sizes: Sizes, device: Device) -> Iterator[tuple[str, Values]]:
    """The rate of a large matrix product: in bf16 on GPUs, in fp32 on CPUs."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    product = Product(sizes.product, device, dtype)
    seconds = timed(product, PRODUCTS, sizes.turns, device)
    values = {"size": sizes.product, "dtype": str(dtype).removeprefix("torch."), "seconds": seconds}
    yield "peak", {**values, "tflops": product.gflop / seconds / 1000}


def measure_step(
    sizes: Sizes, device: Device, wanted: list[str], kind: Kind, decoder: str, clips: int, side: str
) -> Iterator[tuple[str, Values]]:
    """A step on a batch that is on the device, fed from host memory, and what GPU and host do meanwhile.

    Args:
        wanted: the figures to measure, of `step`, `kernels` and `host`.
        side: compiled, eager, or plain: without fused attention.
    """
    config = sizes.config(kind, decoder, clips, device, side == "compiled")
    with tempfile.TemporaryDirectory(prefix="raymae-gpu-") as folder:
        stepper = Stepper(noise_stage(Folder(folder), config, clips, kind), device, fused=side != "plain")
        begun = time.perf_counter()
        stepper.on_device()
        synchronize(device)
        first_seconds = time.perf_counter() - begun
        for _ in range(WARM_STEPS):
            stepper.on_device()
        synchronize(device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if "step" in wanted:
            seconds = timed(stepper.on_device, sizes.steps, sizes.turns, device)
            values = {"clips": clips, "seconds": seconds, "clips_per_second": clips / seconds}
            values |= {"first_seconds": first_seconds, "tflops": clips / seconds * sizes.flops(kind, config) / 1e12}
            values |= {"loss": stepper.loss(), **memory(kind, config, clips, device)}
            stepper.fed()
            values["fed_clips_per_second"] = clips / timed(stepper.fed, sizes.steps, sizes.turns, device)
            yield "step", values
        if "kernels" in wanted:
            yield "kernels", kernel_use(stepper.fed)
        if "host" in wanted:
            yield "host", host_time(stepper, device)


def measure_preparation(sizes: Sizes, device: Device) -> Iterator[tuple[str, Values]]:
    """What the thread that prepares steps takes for one: its masks alone, and everything up to the copies."""
    config = sizes.config("pretrain", "local", sizes.clips, device, compiled=False)
    grid = grid_size(sizes.n_frames, sizes.n_mels, config.model.patch_size)
    valid = np.ones((sizes.clips, grid[0] * grid[1]), bool)
    with tempfile.TemporaryDirectory(prefix="raymae-gpu-") as folder:
        stepper = Stepper(noise_stage(Folder(folder), config, sizes.clips), device)
        draws = Draws(0, np.arange(sizes.clips))
        model: Any = stepper.task.model
        masks = timed(lambda: model.draw(valid, grid, draws), DRAWS, sizes.turns, device)
        whole = timed(stepper.prepare, DRAWS, sizes.turns, device)
    yield "draws", {"clips": sizes.clips, "masks_ms": 1000 * masks, "prepare_ms": 1000 * whole}


def host_time(stepper: Stepper, device: Device) -> Values:
    """Milliseconds of the step's thread for a step: of its forward and backward pass, and of everything else.

    The device is waited for in between, outside these times, so that no launch waits for room in its queue.
    """
    step, own, launches = stepper.train_step, [], []
    backward = step._backward

    def measured(*args: Any) -> Any:
        begun = time.perf_counter()
        found = backward(*args)
        launches.append(time.perf_counter() - begun)
        synchronize(device)
        passes.append(time.perf_counter() - begun)
        return found

    for _ in range(HOST_STEPS):
        passes: list[float] = []
        synchronize(device)
        step._backward = measured  # type: ignore[method-assign, assignment]
        begun = time.perf_counter()
        stepper.on_device()
        own.append(time.perf_counter() - begun - sum(passes))
        del step._backward
    return {"launch_ms": 1000 * statistics.median(launches), "step_ms": 1000 * statistics.median(own)}


def memory(kind: Kind, config: Config, clips: int, device: Device) -> Values:
    """Memory of a step as predicted by arithmetic, GB, and on GPUs what torch allocated and reserved at most."""
    if kind == "pretrain":
        found = pretrain_memory(config.audio, config.model, config.pretrain)
    else:
        found = finetune_memory(config.audio, config.model, config.finetune, CLASSES)
    values = {"predicted_gb": found.peak(clips) / 1e9}
    if device == "cuda":
        values["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        values["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return values


def timed(call: Callable[[], object], calls: int, turns: int, device: Device) -> float:
    """Seconds of a call: the median over some turns, whose calls are queued and waited for together."""
    seconds = []
    for turn in range(turns + 1):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        if turn:
            seconds.append((time.perf_counter() - begun) / calls)
    return statistics.median(seconds)


def synchronize(device: Device) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
