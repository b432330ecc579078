"""`python -m raymae.benchmark.gpu`: both calls without the absent packages; failures, the time, a second call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from raymae.benchmark.gpu.cases import Case, measure_all, plan
from raymae.benchmark.gpu.kernels import idleness
from raymae.benchmark.gpu.record import MOST_STARTS, Record
from raymae.benchmark.gpu.rows import result
from raymae.benchmark.gpu.sizes import FULL, TINY
from raymae.benchmark.gpu.steps import measure_step
from raymae.pipeline.dry_run.cost import VIT_B, useful_flops

WITHOUT = """
import runpy, sys

ABSENT = {"ray", "mlflow", "pydantic", "soundfile", "soxr", "optuna", "tyro", "tensorboardX", "pandas", "numba",
          "matplotlib"}

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
runpy.run_module("raymae.benchmark.gpu", run_name="__main__", alter_sys=True)
"""


def call(part: int, path: Path) -> str:
    """What a call at tiny sizes prints."""
    run = [sys.executable, "-c", WITHOUT, "--part", str(part), "--json", str(path), "--tiny"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(run, check=True, capture_output=True, text=True, env=environment).stdout


def test_two_calls_measure_everything_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    call(1, path)
    first = json.loads(path.read_text())["figures"]
    said = call(2, path)
    content = json.loads(path.read_text())
    figures, names = content["figures"], {part: figure_names(part) for part in (1, 2)}
    assert set(first) == names[1] < names[2] == set(figures)
    assert {name: figures[name] for name in first} == first
    assert not any(f"{name.partition(':')[0]} …" in said for name in first)
    assert not [values for values in figures.values() if "error" in values]
    assert (content["left"], content["starts"]) == ([], {})
    for name, values in figures.items():
        assert all(
            value > 0 for key, value in values.items() if key.endswith(("_per_second", "seconds", "_ms", "tflops"))
        ), name
        assert not {"peak_gb", "idle_share"} & set(values), name
    for kind in ("local", "global", "light", "finetune"):
        assert figures[f"{kind} eager 8: step"]["predicted_gb"] > 0
    assert [row["goal"] for row in content["rows"]] == [0.97, 1.0]
    assert "| finetune eager 8 |" in said


def figure_names(part: int) -> set[str]:
    return {f"{case.name}: {name}" for case in plan(TINY, "cpu", part) for name in case.figures}


def test_the_most_important_figures_come_first() -> None:
    names = [case.name for case in plan(FULL, "cuda", 2)]
    assert names[:4] == ["product", "local compiled 128", "local eager 128", "local plain 128"]
    assert names[: len(plan(FULL, "cuda", 1))] == [case.name for case in plan(FULL, "cuda", 1)]
    steps = {
        f"{decoder} {side} {clips}"
        for decoder in FULL.models
        for side in ("compiled", "eager")
        for clips in (32, 64, 128, 256)
    }
    assert steps < set(names)
    assert len(names) == len(set(names))
    config = FULL.config("pretrain", "local", 128, "cuda", compiled=True)
    assert FULL.flops("pretrain", config) == useful_flops(VIT_B, 1024, 128)
    assert (config.pretrain.precision, config.pretrain.compile) == ("bf16", True)


def test_a_compiled_step_is_measured_as_the_stages_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_one = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compiled.append(1) or compile_one(*args, **kwargs))
    step = partial(measure_step, TINY, "cpu", ["step", "host"], "pretrain", "local", 4)
    eager = dict(step("eager"))
    assert not compiled
    found = dict(step("compiled"))
    assert len(compiled) == TINY.models["local"].depth + TINY.models["local"].decoder_depth
    assert found["step"]["loss"] == pytest.approx(eager["step"]["loss"], rel=1e-5)
    assert found["host"]["launch_ms"] > 0


def cases(calls: list[str], **errors: BaseException) -> list[Case]:
    """Cases of one figure; those with an error raise it."""

    def measure(name: str, wanted: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        calls.append(name)
        yield "one", {"value": 1.0}
        if name in errors:
            raise errors[name]
        yield "two", {"value": 2.0}

    return [
        Case(name=name, figures=("one", "two"), seconds=10, measure=partial(measure, name)) for name in ("a", "b", "c")
    ]


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json", {"device": "x"})
    calls: list[str] = []
    failing = cases(calls, b=torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"))
    assert measure_all(failing, record, time.monotonic() + 60) == []
    assert record.get("b: one") == record.figures["a: one"] | {
        "taken_seconds": record.figures["b: one"]["taken_seconds"]
    }
    assert record.figures["b: two"] == {"error": "OutOfMemoryError: CUDA out of memory."}
    assert record.get("c: two")
    assert "Failed: b: two: OutOfMemoryError" in result(record, 8, []).text
    again = Record(tmp_path / "gpu.json", {"device": "x"})
    assert measure_all(failing, again, time.monotonic() + 60) == []
    assert calls == ["a", "b", "c"]
    with pytest.raises(ValueError, match="name another file"):
        Record(tmp_path / "gpu.json", {"device": "y"})


def test_nothing_is_begun_that_would_end_too_late(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json", {})
    assert measure_all(cases([]), record, time.monotonic() + 5) == ["a", "b", "c"]
    assert record.figures == {}


def test_a_case_that_ends_the_process_is_begun_twice_at_most(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(MOST_STARTS):  # as a kill, it isn't caught
        with pytest.raises(KeyboardInterrupt):
            measure_all(cases(calls, b=KeyboardInterrupt()), Record(tmp_path / "gpu.json", {}), time.monotonic() + 60)
    record = Record(tmp_path / "gpu.json", {})
    assert measure_all(cases(calls), record, time.monotonic() + 60) == []
    assert calls == ["a", "b", "b", "c"]
    assert record.figures["b: two"] == {"error": "it ended the process twice"}
    assert record.get("b: one")


def test_idleness_is_what_no_kernel_covers() -> None:
    kernels = [(10, 5), (12, 5), (20, 10), (22, 2), (35, 5)]
    events: list[dict[str, Any]] = [{"cat": "kernel", "ts": start, "dur": length} for start, length in kernels]
    events += [
        {"cat": "gpu_memcpy", "ts": 0, "dur": 100},
        {"cat": "gpu_user_annotation", "ts": 0, "dur": 90},
        {"ph": "M"},
    ]
    found = idleness(events[::-1], steps=2)
    assert found["busy_ms"] == pytest.approx((7 + 10 + 5) / 2000)
    assert found["idle_ms"] == pytest.approx((3 + 5) / 2000)
    assert found["idle_share"] == pytest.approx(8 / 30)
    with pytest.raises(ValueError, match="no kernels"):
        idleness([], steps=2)


def test_goals_are_those_of_a_gpu(tmp_path: Path) -> None:
    record = Record(tmp_path / "gpu.json", {})
    step = {"fed_clips_per_second": 900.0, "first_seconds": 30.0, "predicted_gb": 30.0, "peak_gb": 31.5}
    record.add("product: peak", {"tflops": 700.0})
    record.add("local compiled 128: step", {"clips_per_second": 2000.0, "tflops": 420.0, **step})
    record.add("local compiled 128: kernels", {"idle_share": 0.01, "busy_ms": 63.36, "idle_ms": 0.64})
    record.add("local compiled 128: host", {"launch_ms": 20.0, "step_ms": 1.5})
    record.add("local plain 128: step", {"clips_per_second": 500.0, "tflops": 105.0, **step})
    record.add("loop: loop", {"clips_per_second": 1960.0, "data_wait_share": 0.0, "loop_ms": 0.5})
    rows = {row.goal: row for row in result(record, 128, ["light eager 32"]).rows}
    assert {goal: row.ratio for goal, row in rows.items()} == pytest.approx(
        {0.5: 0.6, 2.0: 4.0, 0.02: 0.01, 1.1: 1.05, 0.97: 0.98, 1.0: 2 / 3}
    )
    assert all(row.met for row in rows.values())
    assert {goal for goal, row in rows.items() if row.at_most} == {0.02, 1.0, 1.1}
