"""`train-step`: a complete pre-training step, against the matrix product peak of the machine.

Also runs without Ray, MLflow, tyro and soundfile: python -m raymae.benchmark.speed.train_step --json train_step.json
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raymae.benchmark.harness.result import Result, Row, machine
from raymae.config import ModelConfig, with_decoder
from raymae.pipeline.dry_run.cost import VIT_B, useful_flops

if TYPE_CHECKING:
    from raymae.benchmark.speed.steps import Side
    from raymae.training.spec import StageSpec


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """The product's step of pre-training (forward to AdamW): clips/s, and the share of the matmul peak.

    All sides alternate in one process and each number is a median over the turns. Other processes on the cores slow a
    step more than a product, since its threads synchronize a thousand times; `--threads 1` avoids that. Clips are
    noise. On the CPU the step runs in float32 on all cores; on a GPU, if there is one, with bfloat16 autocast and
    torch.compile.

    `--json` keys: `cpu`, and `gpu` (null without one), each with `device`, `batch_size`, `peak_gflops` (2048³ float32
    on the CPU, 8192³ bfloat16 on the GPU), `gflop_per_clip` (`useful_flops`), `faithful_clips_per_second` (the model as
    given, by default with the local decoder), `share` (of the peak). Only `cpu`: `threads`, `light_clips_per_second`
    (light decoder), `bf16_clips_per_second` (bfloat16 autocast; null if the processor has no bfloat16 multiplication),
    and `cpu_time_share`, the share by CPU time instead of wall time, which is less affected by other processes. Only
    `gpu`: `plain_clips_per_second` (the same model with unfused attention and not compiled, bfloat16 autocast),
    `fed_clips_per_second` (batches from host memory, prepared ahead by a thread as in the stages).
    """

    json: str | None = None
    """Write the numbers to this JSON file."""
    repetitions: int = 5
    """Timed turns."""
    batch_size: int = 4
    """Clips per step on the CPU."""
    gpu_batch_size: int = 128
    """Clips per step on the GPU."""
    n_frames: int = 1024
    """Frames of a clip."""
    n_mels: int = 128
    """Mel bands of a clip."""
    matmul_size: int = 2048
    """Side of the matrices for the peak of the CPU."""
    gpu_matmul_size: int = 8192
    """Side of the matrices for the peak of the GPU."""
    gpu_steps: int = 10
    """Steps per turn on the GPU."""
    threads: int | None = None
    """Threads on the CPU; the default is one per core."""
    model: ModelConfig = VIT_B
    """Model sizes; the default is ViT-B with a local decoder of 16 blocks."""

    def run(self) -> Result:
        """Measure."""
        import torch

        with tempfile.TemporaryDirectory(prefix="raymae-train-step-") as folder:
            cpu = self.cpu(Path(folder))
            gpu = self.gpu("cuda", Path(folder)) if torch.cuda.is_available() else None
        text = f"By CPU time, less affected by other processes: {cpu['cpu_time_share']:.2f} of the matrix product." + (
            "" if gpu else " No GPU found."
        )
        return Result("train-step", cpu_rows(cpu) + (gpu_rows(gpu) if gpu else []), {"cpu": cpu, "gpu": gpu}, text)

    def spec(
        self,
        folder: Path,
        batch_size: int,
        precision: Literal["fp32", "bf16"],
        model: ModelConfig | None = None,
        compiled: bool = False,
    ) -> StageSpec:
        """The pre-training stage of a side, whose step is one pass, and its clips of noise in a new folder within
        `folder`."""
        from raymae.benchmark.harness.noise_store import noise_audio, noise_stage
        from raymae.config import Config, PretrainConfig
        from raymae.storage.folder import Folder

        train = PretrainConfig(
            epochs=1,
            warmup_epochs=0,
            global_batch_size=batch_size,
            micro_batch_size=batch_size,
            precision=precision,
            compile=compiled,
            lr=1e-4,
            probe_clips=0,
        )
        config = Config(
            audio=noise_audio(self.n_frames, self.n_mels),
            model=model or self.model,
            pretrain=train,
        )
        return noise_stage(Folder(tempfile.mkdtemp(dir=folder)), config, batch_size)

    def cpu(self, folder: Path) -> dict[str, Any]:
        """Measure the CPU."""
        import torch

        from raymae.benchmark.speed.steps import Product, Stepper, take_turns
        from raymae.config.recipes import native_precision

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.threads or cores
        torch.set_num_threads(threads)
        product = Product(self.matmul_size, "cpu", torch.float32)
        faithful = Stepper(self.spec(folder, self.batch_size, "fp32"), "cpu")
        light = with_decoder(self.model, "light")
        narrow = Stepper(self.spec(folder, self.batch_size, "fp32", light), "cpu")
        sides: dict[str, Side] = {
            # products before and after the long step, to run under the same load
            "product": (product, 10),
            "faithful": (faithful.on_device, 1),
            "product_after": (product, 10),
            "light": (narrow.on_device, 2),
        }
        if native_precision() == "bf16":
            sides["bf16"] = (Stepper(self.spec(folder, self.batch_size, "bf16"), "cpu").on_device, 2)
        wall, used = take_turns(sides, self.repetitions, "cpu")
        gflop = useful_flops(self.model, self.n_frames, self.n_mels) / 1e9
        peak, cpu_peak = (
            2 * product.gflop / (seconds["product"] + seconds["product_after"]) for seconds in (wall, used)
        )
        return {
            "device": machine()["processor"],
            "batch_size": self.batch_size,
            "threads": threads,
            "peak_gflops": peak,
            "gflop_per_clip": gflop,
            "faithful_clips_per_second": self.batch_size / wall["faithful"],
            "light_clips_per_second": self.batch_size / wall["light"],
            "bf16_clips_per_second": self.batch_size / wall["bf16"] if "bf16" in wall else None,
            "share": self.batch_size * gflop / wall["faithful"] / peak,
            "cpu_time_share": self.batch_size * gflop / used["faithful"] / cpu_peak,
        }

    def gpu(self, device: str, folder: Path) -> dict[str, Any]:
        """Measure a GPU."""
        import torch

        from raymae.benchmark.speed.steps import Product, Stepper, device_name, take_turns

        product = Product(self.gpu_matmul_size, device, torch.bfloat16)
        fused = Stepper(self.spec(folder, self.gpu_batch_size, "bf16", compiled=True), device)
        plain = Stepper(self.spec(folder, self.gpu_batch_size, "bf16"), device, fused=False)
        steps = self.gpu_steps
        sides: dict[str, Side] = {
            "product": (product, steps),
            "faithful": (fused.on_device, steps),
            "fed": (fused.fed, steps),
            "plain": (plain.on_device, steps),
        }
        wall, _ = take_turns(sides, self.repetitions, device)
        gflop = useful_flops(self.model, self.n_frames, self.n_mels) / 1e9
        peak = product.gflop / wall["product"]
        return {
            "device": device_name(device),
            "batch_size": self.gpu_batch_size,
            "peak_gflops": peak,
            "gflop_per_clip": gflop,
            **{f"{name}_clips_per_second": self.gpu_batch_size / wall[name] for name in ("faithful", "plain", "fed")},
            "share": self.gpu_batch_size * gflop / wall["faithful"] / peak,
        }


def cpu_rows(cpu: dict[str, Any]) -> list[Row]:
    """Rows of the CPU, with their goals."""
    base = cpu["faithful_clips_per_second"]
    faithful = f"{base:.2f} clips/s"
    rows = [
        Row(
            "train-step",
            f"step, local decoder, fp32 on {cpu['threads']} threads",
            f"{faithful} = {base * cpu['gflop_per_clip']:.0f} GFLOP/s",
            f"{cpu['peak_gflops']:.0f} GFLOP/s (matrix product)",
            cpu["share"],
            0.75,
        )
    ]
    others = {
        "step, light decoder": ("light", "local decoder", 2.5),
        "step, local decoder, bf16": ("bf16", "fp32", 1.5),
    }
    for what, (name, other, goal) in others.items():
        if rate := cpu[f"{name}_clips_per_second"]:
            rows.append(Row("train-step", what, f"{rate:.2f} clips/s", f"{faithful} ({other})", rate / base, goal))
    return rows


def gpu_rows(gpu: dict[str, Any]) -> list[Row]:
    """Rows of the GPU, with their goals."""
    base, plain, fed = (gpu[f"{name}_clips_per_second"] for name in ("faithful", "plain", "fed"))
    rate = f"{base:.0f} clips/s"
    needed, peak = (f"{gflops / 1000:.0f} TFLOP/s" for gflops in (base * gpu["gflop_per_clip"], gpu["peak_gflops"]))
    what = f"step, bf16 on {gpu['device']}"
    return [
        Row("train-step", what, f"{rate} = {needed}", f"{peak} (matrix product)", gpu["share"], 0.45),
        Row("train-step", what, rate, f"{plain:.0f} clips/s (unfused attention, not compiled)", base / plain, 2.0),
        Row(
            "train-step",
            "step, batches from host memory",
            f"{fed:.0f} clips/s",
            f"{rate} (on the device)",
            fed / base,
            0.97,
        ),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line with argparse and run the part; needs only torch and raymae's core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the numbers to this JSON file")
    for name in ("repetitions", "batch-size", "gpu-batch-size", "threads"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    part = TrainStep(**vars(parser.parse_args(arguments)))
    result = part.run()
    print(f"{result.part} ({machine()['load_average']:.1f} load average)\n{result}", flush=True)
    if part.json:
        result.save(part.json)


if __name__ == "__main__":
    main()
