"""Run two steps of a training stage at full size on generated recordings, in a process of its own, and measure them.

Model, loss, optimiser and loop are the stage's own; the recordings are tones in noise of the clips' length, under the
names of real clips, and go through the front end.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymae.audio.clip_reader import ClipReader
from raymae.audio.logmel import fit_length
from raymae.audio.spans import Clip, Span
from raymae.config import Config
from raymae.config.recipes import native_precision
from raymae.datasets.rows import rows_of
from raymae.datasets.synthetic.tones import recording
from raymae.features.store import FeatureStore
from raymae.features.write import write_store
from raymae.storage.folder import Folder
from raymae.training.spec import StageSpec

STEPS = 2
CPU_CLIPS = 2
"""Most clips at once on CPUs: a step of a ViT-B takes seconds for each."""


@dataclass(frozen=True)
class TrialSteps:
    """Measurements of two steps of a stage."""

    device: str
    """cpu, or the name of the GPU."""
    threads: int
    precision: str
    """As set, but fp32 on CPUs that would have to emulate bf16 or fp16."""
    parameters: int
    """Trained ones."""
    clips: int
    """Clips at once: those of a forward pass by the settings, on CPUs no more than `CPU_CLIPS`, to each of which
    consistency training brings its unlabelled ones."""
    first_seconds: float
    """Of the first step, which also warms up."""
    seconds: float
    """Of the second step: forward and backward pass of `clips` clips, and the update."""
    peak_mb: float
    """Largest memory, of the process on CPUs and of torch on a GPU."""
    base_mb: float
    """The share of it that was used before the model was built."""
    state_mb: float
    """Weights, gradients, two moments and, where it is kept, the average: the same for any number of clips."""
    loss: float

    def needed_mb(self, clips: int) -> float:
        """Memory with `clips` at once: the activations grow with them, all else is constant."""
        activations = max(0.0, self.peak_mb - self.base_mb - self.state_mb)
        return self.base_mb + self.state_mb + activations * clips / self.clips

    @property
    def clips_per_second(self) -> float:
        """Clips per second in the second step."""
        return self.clips / self.seconds


class GeneratedReader(ClipReader):
    """Returns the log-mel of a generated recording, another one for each name."""

    def each(self, path: str, spans: Sequence[Span]) -> Iterator[Clip]:
        """A clip for each of some parts of a recording."""
        for span in spans:
            waveform = recording(self.audio.clip_seconds, sum(f"{path}{span}".encode()), self.audio.sample_rate)
            features, valid_frames = fit_length(self.log_mel(waveform), self.audio.n_frames, self.audio.silence)
            yield features.astype(np.float16), valid_frames, self.audio.clip_seconds


def run_trial(config: Config, kind: str, clips: pa.Table) -> TrialSteps | None:
    """Train two steps of a training stage in a fresh process; None where it was killed, most likely for lack of memory.

    `clips` is the clip table of the run, of whose names a few are taken. Raises what the stage raises.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="raymae-trial-") as folder, ProcessPoolExecutor(1, spawn) as pool:
        try:
            return pool.submit(train, config, kind, few(clips), folder).result()
        except BrokenProcessPool:
            return None


def few(clips: pa.Table) -> pa.Table:
    """A labelled training clip of every class, and the first clips that serve pre-training, unlabelled ones first."""
    train = clips.take(rows_of(clips, "train", labelled=True))
    labels = train["scene_label"].to_pandas()
    first = train.take(np.flatnonzero(~labels.duplicated()))
    ids = first["clip_id"].combine_chunks()
    unused = clips.filter(pc.invert(pc.is_in(clips["clip_id"], value_set=ids)))
    kinds = [rows_of(unused, "train", labelled=known) for known in (False, True)]
    others = [np.concatenate(kinds), rows_of(unused, "pool")]
    return pa.concat_tables([first, *(unused.take(rows[: STEPS * CPU_CLIPS]) for rows in others)])


def two_steps(config: Config, clips: int, on_gpu: bool) -> Config:
    """The same settings for two steps of one forward pass each, without validation, checkpoints and profiling.

    On CPUs that don't multiply bfloat16 in hardware in fp32: emulated, a step of ViT-B would take minutes.
    """
    compute = replace(config.compute, num_workers=1, profile_steps=0)
    changes: dict[str, Any] = {
        "global_batch_size": clips,
        "micro_batch_size": clips,
        "mixing_group": None,
        "warmup_epochs": 0,
        "report_steps": 1,
    }
    changes |= {"epochs": 1.0, "commit_minutes": 1e6, "init_from": None} | ({} if on_gpu else {"compile": False})
    if not on_gpu and native_precision() == "fp32":
        changes["precision"] = "fp32"
    pretrain = replace(config.pretrain, **changes, probe_clips=0)
    finetune = replace(config.finetune, **changes, head_epochs=0.0)
    consistency = replace(config.consistency, micro_batch_size=None, epochs=1.0)
    return replace(config, pretrain=pretrain, finetune=finetune, consistency=consistency, compute=compute)


def micro_batch(config: Config, kind: str) -> tuple[int, int]:
    """Clips of a worker's forward pass: as the settings count them, and with the unlabelled ones of consistency
    training. It has the whole step where there are no other workers."""
    section = config.consistency.training(config.finetune) if kind == "consistency" else getattr(config, kind)
    clips = min(section.micro_batch_size, section.global_batch_size)
    return clips, clips * clips_for_each(config, kind)


def clips_for_each(config: Config, kind: str) -> int:
    """Clips for each counted one: in consistency training itself and its unlabelled ones."""
    return 1 + config.consistency.ratio if kind == "consistency" else 1


def train(config: Config, kind: str, clips: pa.Table, folder: str) -> TrialSteps:
    """Make a store of the clips and train on it; in the process that `run_trial` starts."""
    import torch

    from raymae.training.run_stage import build_task
    from raymae.training.trainer import Trainer
    from raymae.training.worker import BareSession

    on_gpu = torch.cuda.is_available() and config.compute.use_gpu is not False
    section = config.pretrain if kind == "pretrain" else config.finetune
    counted, _ = micro_batch(config, kind)
    at_once = counted if on_gpu else min(CPU_CLIPS, counted)
    torch.set_num_threads(config.compute.torch_threads or torch.get_num_threads())
    store = write_store(
        Folder(folder),
        clips,
        config.audio,
        GeneratedReader(config.audio, config.data.file_timeout),
        config.data.shard_mb,
    )
    spec = make_spec(two_steps(config, at_once, on_gpu), kind, store, Folder(folder) / "run")
    device = "cuda" if on_gpu else "cpu"
    base = memory_mb()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        base = 0.0
    trainer = Trainer.start(build_task(spec), BareSession(store, spec.artifact, device), spec.artifact)
    begun = time.perf_counter()
    progress = trainer.run()
    spent = time.perf_counter() - begun
    clips_at_once = trainer.order.global_batch_size
    seconds = clips_at_once / progress.metrics["clips_per_second"]
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    numbers, others = (sum(value.numel() for value in some) for some in (trained, trainer.model.parameters()))
    copies = 4 + (section.ema_decay is not None)
    return TrialSteps(
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        threads=torch.get_num_threads(),
        precision=spec.train.precision,
        parameters=numbers,
        clips=clips_at_once,
        first_seconds=spent - seconds,
        seconds=seconds,
        peak_mb=torch.cuda.max_memory_allocated() / 1e6 if on_gpu else memory_mb("VmHWM"),
        base_mb=base,
        state_mb=4 * (copies * numbers + others - numbers) / 1e6,
        loss=progress.metrics.get("loss", float("nan")),
    )


def make_spec(config: Config, kind: str, store: FeatureStore, artifact: Folder) -> StageSpec:
    """The stage, as long as two steps."""
    spec = StageSpec(name=kind, kind=kind, config=config, artifact=artifact, store=store)  # type: ignore[arg-type]
    epochs = (STEPS - 0.5) * spec.train.global_batch_size / spec.order().rows_per_epoch
    return replace(spec, config=replace(config, **{kind: replace(getattr(config, kind), epochs=epochs)}))


def memory_mb(field: str = "VmRSS") -> float:
    """Resident memory of this process, VmRSS now or VmHWM at most; where there is no /proc, at most in either case."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))
