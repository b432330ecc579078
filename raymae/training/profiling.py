"""Profile some training steps (a trace for Perfetto or chrome://tracing, and the costliest operations); GPU use."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from raymae.config import redact
from raymae.storage.folder import Folder

log = logging.getLogger(__name__)

_SILENT: set[torch.device] = set()
"""Devices whose use can't be asked for."""
FOLDER = "profile"
SKIPPED_STEPS = 5
"""Steps before the profile: compilation, the first allocations, cold caches."""
ROWS = 30


@contextmanager
def profiled(artifact: Folder, steps: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Profile `steps` steps of the block after the warm-up; yields a function to call after each step.

    Writes `profile/trace.json.gz` and `profile/operations.txt`. With 0 steps it does nothing. Results stay
    the same; profiled steps take longer.
    """
    if not steps:
        yield lambda: None
        return
    on_gpu = device.type == "cuda"
    written = []

    def write(profiler: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            artifact.upload(path, f"{FOLDER}/trace.json.gz")
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        artifact.write_bytes(f"{FOLDER}/operations.txt", f"{steps} steps\n{table}\n".encode())
        written.append(True)
        log.info("profile of %d steps: %s/%s", steps, redact(artifact.url), FOLDER)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    plan = schedule(skip_first=SKIPPED_STEPS - 1, wait=0, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        log.warning("no profile: it begins after %d steps, and the run had fewer", SKIPPED_STEPS)


def device_use(device: torch.device) -> dict[str, float]:
    """GPU metrics: gpu_memory_gb, the peak so far, and, with NVIDIA's package pynvml, gpu_use, 0 to 1; none on CPUs."""
    if device.type != "cuda":
        return {}
    found = {"gpu_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    if find_spec("pynvml") and device not in _SILENT:
        try:
            found["gpu_use"] = torch.cuda.utilization(device) / 100
        except Exception as error:  # NVML isn't loaded, the GPU is part of another (MIG), or doesn't answer
            _SILENT.add(device)
            log.warning("the use of %s isn't reported: %s", device, error)
    return found
