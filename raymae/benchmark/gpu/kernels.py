"""How much of the time a GPU computes, from the profiler's timeline of its kernels."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 5
"""Profiled steps."""
COMPUTING = ("kernel", "gpu_memset")
"""Categories of a trace that count; copies run beside them."""


def kernel_use(step: Callable[[], object]) -> dict[str, float]:
    """Kernels, milliseconds of computing and of idleness of a step, and the idle share, over `STEPS` steps."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # events of the CPU would slow the launches
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return idleness(events, STEPS)


def idleness(events: Iterable[dict[str, Any]], steps: int) -> dict[str, float]:
    """`kernel_use` of a trace's events (times in microseconds), whose kernels may run side by side.

    Raises:
        ValueError: there is no kernel.
    """
    spans = sorted((one["ts"], one["ts"] + one["dur"]) for one in events if one.get("cat") in COMPUTING)
    if not spans:
        raise ValueError("the profiler saw no kernels: CUPTI may be missing, or not allowed here")
    (begun, ended), busy = spans[0], 0.0
    first = begun
    for start, stop in spans[1:]:
        if start > ended:
            busy += ended - begun
            begun = start
        ended = max(ended, stop)
    busy += ended - begun
    span = ended - first
    return {
        "kernels": len(spans) / steps,
        "busy_ms": busy / steps / 1000,
        "idle_ms": (span - busy) / steps / 1000,
        "idle_share": 1 - busy / span,
    }
