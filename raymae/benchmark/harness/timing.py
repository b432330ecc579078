"""Timing of the two sides of a comparison on a machine that may run other processes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raymae.benchmark.harness.memory import process_tree


def interleave(sides: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median CPU seconds of each side's call; the sides alternate, so that both run under the same load.

    Counts the CPU seconds of all threads of this process. For a single-threaded side on an idle machine they equal the
    wall time, and they hardly grow when other processes use the core. One unmeasured turn comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repetitions + 1):
        for name, call in sides.items():
            started = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def cpu_seconds(pids: list[int]) -> dict[int, float]:
    """CPU seconds used so far by each process that is still running (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        used[pid] = (int(fields[11]) + int(fields[12])) / ticks
    return used


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds used between two calls of `cpu_seconds`, by the processes alive at the second call."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def cpu_beside(before: dict[int, float], after: dict[int, float]) -> float:
    """`cpu_between` without the process that used most."""
    return cpu_between(before, after) - max(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


@dataclass(frozen=True)
class Pace:
    """Throughput after start-up."""

    rate: float
    """Clips per second."""
    cpu: float
    """CPU seconds per clip, of this process and its descendants."""
    start_seconds: float
    """From the call to the first batch."""


def pace(batches: Iterable[Any], skipped: int) -> Pace:
    """Consume all batches and time those after the first `skipped`; ValueError if fewer than two remain."""
    begun = time.perf_counter()
    arrived: list[tuple[float, int]] = []
    used: dict[int, float] = {}
    for batch in batches:
        arrived.append((time.perf_counter(), len(batch)))
        if len(arrived) == skipped:
            used = cpu_seconds(process_tree(os.getpid()))
    cpu = cpu_between(used, cpu_seconds(process_tree(os.getpid())))
    counted = arrived[skipped:]
    if len(counted) < 2:
        raise ValueError(f"too few batches to time: {len(arrived)}")
    clips = sum(count for _, count in counted)
    return Pace(clips / (counted[-1][0] - arrived[skipped - 1][0]), cpu / clips, arrived[0][0] - begun)
