"""The cases in the order of their importance, and the run through them within a time budget."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from raymae.benchmark.gpu.loop import measure_loop
from raymae.benchmark.gpu.record import Record, Values
from raymae.benchmark.gpu.sizes import Device, Sizes
from raymae.benchmark.gpu.steps import measure_preparation, measure_product, measure_step

STEP = ("step", "kernels", "host")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Figures that are measured together."""

    name: str
    figures: tuple[str, ...]
    seconds: float
    """About how long it takes on a GPU; it is only begun if so much time is left."""
    measure: Callable[[list[str]], Iterator[tuple[str, Values]]]
    """From the figures that are missing to each of them with its name."""


def plan(sizes: Sizes, device: Device, part: int) -> list[Case]:
    """The cases of part 1, or of both; without those that need a GPU on a CPU."""
    one = [
        Case(name="product", figures=("peak",), seconds=10, measure=lambda _: measure_product(sizes, device)),
        step_case(sizes, device, "local", "compiled"),
        step_case(sizes, device, "local", "eager"),
        step_case(sizes, device, "local", "plain"),
        Case(
            name="loop",
            figures=("loop", "commit"),
            seconds=90,
            measure=partial(measure_loop, sizes, device, compiled=device == "cuda"),
        ),
        Case(name="preparation", figures=("draws",), seconds=10, measure=lambda _: measure_preparation(sizes, device)),
        *(step_case(sizes, device, decoder, "compiled") for decoder in ("global", "light")),
        *(step_case(sizes, device, decoder, "eager") for decoder in ("global", "light")),
    ]
    two = [finetune_case(sizes, device, side) for side in ("compiled", "eager")]
    for decoders in (("local",), ("global", "light")):
        for side in ("compiled", "eager"):
            two += [step_case(sizes, device, name, side, clips) for name in decoders for clips in sizes.other_clips]
    cases = one + two if part == 2 else one
    return [case for case in cases if device == "cuda" or " compiled " not in case.name]


def step_case(sizes: Sizes, device: Device, decoder: str, side: str, clips: int | None = None) -> Case:
    """Steps of pre-training."""
    clips = clips or sizes.clips
    figures = ("step",) if side == "plain" else tuple(name for name in STEP if device == "cuda" or name != "kernels")
    return Case(
        name=f"{decoder} {side} {clips}",
        figures=figures,
        seconds=75 if side == "compiled" else 25,
        measure=lambda wanted: measure_step(sizes, device, wanted, "pretrain", decoder, clips, side),
    )


def finetune_case(sizes: Sizes, device: Device, side: str) -> Case:
    """Steps of fine-tuning."""
    return Case(
        name=f"finetune {side} {sizes.clips}",
        figures=("step",),
        seconds=60 if side == "compiled" else 20,
        measure=lambda wanted: measure_step(sizes, device, wanted, "finetune", "local", sizes.clips, side),
    )


def measure_all(cases: list[Case], record: Record, deadline: float) -> list[str]:
    """Measure what is missing in a record, until `deadline` (`time.monotonic`); returns what is left.

    A figure that fails is recorded with its error. After one that leaves the GPU unusable the rest is left to the next
    call.
    """
    left, usable = [], True
    for case in cases:
        wanted = [name for name in case.figures if figure(case, name) not in record.figures]
        if not wanted:
            continue
        if not usable or time.monotonic() + case.seconds > deadline:
            left.append(case.name)
            continue
        error = _measure(case, record, wanted) if record.begin(case.name) else "it ended the process twice"
        for name in wanted:
            if error and figure(case, name) not in record.figures:
                record.add(figure(case, name), {"error": error})
        record.end(case.name)
        usable = _clean()
    return left


def figure(case: Case, name: str) -> str:
    """The name of a figure in the record."""
    return f"{case.name}: {name}"


def _measure(case: Case, record: Record, wanted: list[str]) -> str | None:
    """Measure a case; the text of its error."""
    print(f"{case.name} …", flush=True)
    begun = time.perf_counter()
    try:
        for name, values in case.measure(wanted):
            record.add(figure(case, name), {**values, "taken_seconds": time.perf_counter() - begun})
            print(f"  {name}: {described(values)}", flush=True)
    except Exception as error:  # also those of compilers and of the GPU's driver
        lines = str(error).strip().splitlines()
        text = f"{type(error).__name__}: {lines[0][:500] if lines else ''}"
        print(f"  {text}", flush=True)
        return text
    return None


def _clean() -> bool:
    """Free the memory and the compiler's caches of a case; False if the GPU can't be used any more."""
    gc.collect()
    torch.compiler.reset()
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        print(f"the GPU can't be used any more; call again for the remaining figures: {error}", flush=True)
        return False
    return True


def described(values: Values) -> str:
    """A figure in one line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
