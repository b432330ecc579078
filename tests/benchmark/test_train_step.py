"""`benchmark train-step`: FLOP count, results at a tiny size, and a run without optional packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raymae.benchmark.speed.steps import Stepper, take_turns
from raymae.benchmark.speed.train_step import TrainStep, gpu_rows
from raymae.cli.jobs import JOBS
from raymae.cli.subcommands import choose_job
from raymae.config import ModelConfig, with_decoder
from raymae.config.recipes import native_precision
from raymae.models.decoder import WINDOW
from raymae.pipeline.dry_run.cost import WINDOW_PATCHES, useful_flops
from raymae.training.optim import clip_gradients

torch.set_num_threads(1)

TINY = ModelConfig(
    embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2, mask_ratio=0.8
)
PART = TrainStep(
    repetitions=1,
    batch_size=2,
    gpu_batch_size=2,
    n_frames=128,
    n_mels=64,
    matmul_size=64,
    gpu_matmul_size=64,
    gpu_steps=1,
    threads=1,
    model=TINY,
)


@pytest.mark.parametrize("decoder", ["local", "global"])
def test_useful_flops_match_the_counter(decoder: str, tmp_path: Path) -> None:
    """The counter includes the padding of windows and the position biases, and no gradient of the input."""
    model = replace(TINY, embed_dim=192, depth=2, num_heads=3, decoder_embed_dim=128, decoder=decoder)
    part = replace(PART, model=model, n_frames=1024, n_mels=128)
    stepper = Stepper(part.spec(tmp_path, 4, "fp32"), "cpu", fused=False)
    with FlopCounterMode(display=False) as counter:
        stepper.on_device()
    assert counter.get_total_flops() == pytest.approx(4 * useful_flops(model, 1024, 128), rel=0.04)


def test_useful_flops_of_vit_b() -> None:
    assert useful_flops(ModelConfig(), 1024, 128) == pytest.approx(209.8e9, rel=0.001)
    assert useful_flops(with_decoder(ModelConfig(), "light"), 1024, 128) < 209.8e9 / 2.5
    assert WINDOW_PATCHES == WINDOW**2


def test_cpu_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = PART.run()
    result.save(str(path))
    cpu = json.loads(path.read_text())["cpu"]
    assert {name for name, value in cpu.items() if isinstance(value, float) and value > 0} == {
        "peak_gflops",
        "gflop_per_clip",
        "faithful_clips_per_second",
        "light_clips_per_second",
        "share",
        "cpu_time_share",
        *(["bf16_clips_per_second"] if native_precision() == "bf16" else []),
    }
    assert (cpu["batch_size"], cpu["threads"]) == (2, 1)
    share = cpu["faithful_clips_per_second"] * cpu["gflop_per_clip"] / cpu["peak_gflops"]
    assert cpu["share"] == result.rows[0].ratio == pytest.approx(share)
    assert [row.goal for row in result.rows[:2]] == [0.75, 2.5]


def test_gpu_part_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    part = replace(PART, model=replace(TINY, decoder_depth=1))  # traced in a second per block
    gpu = part.gpu("cpu", tmp_path)
    assert [row.goal for row in gpu_rows(gpu)] == [0.45, 2.0, 0.97]
    ratios = [row.ratio for row in gpu_rows(gpu)]
    rates = [gpu[f"{name}_clips_per_second"] for name in ("faithful", "plain", "fed")]
    assert ratios == pytest.approx([gpu["share"], rates[0] / rates[1], rates[2] / rates[0]])


@pytest.mark.parametrize("changes", [{"fused": False}, {"compiled": True}])
def test_every_side_takes_the_same_step(
    changes: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    losses = []
    for compiled, fused in ((False, True), (changes.get("compiled", False), changes.get("fused", True))):
        stepper = Stepper(PART.spec(tmp_path, 2, "fp32", compiled=compiled), "cpu", fused=fused)
        for step in (stepper.fed, stepper.on_device, stepper.fed):
            step()
        losses.append(stepper.loss())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_sides_alternate() -> None:
    calls: list[str] = []
    sides = {"a": (lambda: calls.append("a"), 2), "b": (lambda: calls.append("b"), 1)}
    wall, used = take_turns(sides, 2, "cpu")
    assert calls == ["a", "a", "b"] * 3
    assert wall.keys() == used.keys() == {"a", "b"}


def test_gradients_are_clipped_as_torch_does() -> None:
    for limit in (None, 0.5, 100.0):
        clipped, expected = (
            [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))] for _ in range(2)
        )
        for parameter in (*clipped, *expected):
            parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter)
        norm = clip_gradients(clipped, limit)
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(expected, limit or float("inf")))
        for one, other in zip(clipped, expected, strict=True):
            assert torch.equal(one.grad, other.grad)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = TrainStep.cpu
    monkeypatch.setattr(TrainStep, "cpu", lambda self, folder: measure(PART, folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "step.json"
    choose_job(JOBS, ["benchmark", "train-step", "--repetitions", "1", "--json", str(path)])
    assert json.loads(path.read_text())["part"] == "train-step"


def test_runs_without_optional_packages(tmp_path: Path) -> None:
    """Imports of Ray, MLflow, tyro and the audio libraries fail in this process."""
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        absent = {"ray", "mlflow", "tyro", "soundfile", "soxr", "numba", "matplotlib"}
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from raymae.benchmark.speed import train_step

train_step.TrainStep = TINY
train_step.main(sys.argv[1:])
"""
    tiny = "__import__('functools').partial(train_step.TrainStep, model=train_step.ModelConfig(depth=1, embed_dim=32, "
    tiny += "num_heads=2, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2), n_frames=64, matmul_size=64)"
    path = tmp_path / "step.json"
    run = [
        sys.executable,
        "-c",
        code.replace("TINY", tiny),
        "--repetitions",
        "1",
        "--threads",
        "1",
        "--json",
        str(path),
    ]
    subprocess.run(run, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    content = json.loads(path.read_text())
    assert np.isfinite(content["cpu"]["share"])
