"""`plan`: cores per GPU, hours, storage and what breaks first of a corpus on a cluster, from measured rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raymae.benchmark.harness.result import Result
from raymae.config import AudioConfig
from raymae.pipeline.dry_run.cost import UNIT_SECONDS, Rates, duration, size
from raymae.training.batches.order import LEAST_STEPS, ROUND_ROWS, WINDOW_ROWS
from raymae.training.batches.windows import AHEAD_ROWS

NETWORK_MB_PER_GBIT = 125.0

CLIP_BYTES = 1_000
"""Driver memory per clip while the clip table is read, bytes; 141 remain afterwards (measured on 200,000 clips)."""

TRAINING_BYTES = 12
"""Bytes of a checkpoint per parameter: weights and both moments of AdamW in fp32."""

COMMIT_SECONDS = 300
"""Seconds between two checkpoints (pretrain.commit_minutes)."""

WAVEFORM_BYTES = 4
"""Bytes of a sample on its way to a GPU: float32 (`raymae.audio.clip_reader.WaveformReader`)."""

WORKER_BYTES = 360
"""Memory of a training worker per clip of the store, bytes: 300 for the clip table while it is read, 42 for the clips'
names, 10 for their places in the shards, 8 for their order (measured on 400,000 clips)."""

DRIVER_GB, NODE_GB, NODE_GPUS = 256, 1000, 8
"""Memory of the driver's node and of a node with so many GPUs, for what breaks first."""

GPU_MB = 12_500.0
"""MB/s between a GPU's node and the others, for each GPU: 100 Gbit/s."""

ASSUMED = f"{DRIVER_GB} GB for the driver, {NODE_GB} GB in a node of {NODE_GPUS} GPUs and 100 Gbit/s between GPUs"

MIXING_GROUP = 8
"""Clips of a mixing group (pretrain.mixing_group)."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus of recordings, cut into clips."""

    name: str
    hours: float
    clip_seconds: float = 10.0
    audio_mb_per_hour: float = 476.0
    """Size of the recordings; the default is 24-bit 44.1 kHz mono WAV."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Resources of a cluster."""

    gpus: int = 8
    cpus: int = 128
    network_gbit: float = 100.0
    """Bandwidth between the storage and all nodes together."""


CORPORA = (
    Corpus(name="CAS 2023", hours=24),
    Corpus(name="TAU 2020", hours=64),
    Corpus(name="AudioSet", hours=5_000),
    Corpus(name="1 M hours", hours=1_000_000),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and resources that a corpus needs on a cluster.

    `store_*`: epochs read stored log-mels; `stream_*`: every epoch decodes the audio.
    """

    clips: int
    audio_gb: float
    store_gb: float
    prepare_hours: float
    store_epoch_hours: float
    stream_epoch_hours: float
    store_cores_per_gpu: float
    """Cores needed to keep one GPU busy from the store."""
    stream_cores_per_gpu: float
    """Cores needed to keep one GPU busy from the audio."""
    waveform_cores_per_gpu: float
    """Cores needed to keep one GPU busy from the audio where it makes the log-mels (audio.device = gpu)."""
    log_mel_feed_mb: float
    """MB/s of log-mels from the cores to one GPU."""
    waveform_feed_mb: float
    """MB/s of waveforms from the cores to one GPU that makes the log-mels."""
    store_network_mb: float
    """MB/s needed to keep all GPUs busy from the store."""
    stream_network_mb: float
    """MB/s needed to keep all GPUs busy from the audio."""
    prepare_bottleneck: str
    """Bottleneck of `prepare`: CPUs or network."""
    store_bottleneck: str
    """Bottleneck of an epoch from the store: GPUs, CPUs or network."""
    stream_bottleneck: str
    """Bottleneck of an epoch from the audio: GPUs, CPUs or network."""
    epochs_repaid: float | None
    """Number of epochs after which `prepare` and the store take less time than streaming; null for never."""
    driver_gb: float
    """Memory of the driver while it reads the clip table."""
    windows_gb: float
    """Size of the windows that a GPU's worker holds and reads ahead."""
    worker_gb: float
    """Memory that a GPU's worker needs for the windows and for the tables of all clips."""
    commit_gb: float
    """Size of a checkpoint, which one worker writes."""
    commit_network_mb: float
    """MB/s that checkpoints write on average."""
    gradients_mb: float
    """MB/s that each GPU sends and receives to average gradients (fp32, ring)."""


def estimate(corpus: Corpus, cluster: Cluster, rates: Rates) -> Estimate:
    """Estimate time and resources; all parts of an epoch overlap, so the slowest one sets the time."""
    audio = AudioConfig(clip_seconds=corpus.clip_seconds)
    clips = round(corpus.hours * 3600 / corpus.clip_seconds)
    units = corpus.hours * 3600 / UNIT_SECONDS
    audio_mb = corpus.hours * corpus.audio_mb_per_hour
    store_mb = clips * audio.n_frames * audio.n_mels * 2 / 1e6
    network = cluster.network_gbit * NETWORK_MB_PER_GBIT
    gpu_seconds = units / (cluster.gpus * rates.gpu_clips)
    featurize_seconds = units / (cluster.cpus * rates.prepare_clips)
    prepare = slowest(CPUs=featurize_seconds, network=(audio_mb + store_mb) / network)
    store = slowest(GPUs=gpu_seconds, CPUs=store_mb / (cluster.cpus * rates.ingest_mb), network=store_mb / network)
    stream = slowest(GPUs=gpu_seconds, CPUs=featurize_seconds, network=audio_mb / network)
    saved = stream[1] - store[1]
    held = AHEAD_ROWS + round_clips(cluster.gpus, rates.gpu_batch)
    return Estimate(
        clips=clips,
        audio_gb=audio_mb / 1e3,
        store_gb=store_mb / 1e3,
        prepare_hours=prepare[1] / 3600,
        store_epoch_hours=store[1] / 3600,
        stream_epoch_hours=stream[1] / 3600,
        store_cores_per_gpu=store_mb / units * rates.gpu_clips / rates.ingest_mb,
        stream_cores_per_gpu=rates.gpu_clips / rates.prepare_clips,
        waveform_cores_per_gpu=rates.gpu_clips / rates.decode_clips,
        log_mel_feed_mb=store_mb / units * rates.gpu_clips,
        waveform_feed_mb=clips * audio.n_samples * WAVEFORM_BYTES / 1e6 / units * rates.gpu_clips,
        store_network_mb=store_mb / gpu_seconds,
        stream_network_mb=audio_mb / gpu_seconds,
        prepare_bottleneck=prepare[0],
        store_bottleneck=store[0],
        stream_bottleneck=stream[0],
        epochs_repaid=prepare[1] / saved if saved > 0 else None,
        driver_gb=clips * CLIP_BYTES / 1e9,
        windows_gb=held * store_mb / clips / 1e3,
        worker_gb=held * store_mb / clips / 1e3 + clips * WORKER_BYTES / 1e9,
        commit_gb=rates.parameters * TRAINING_BYTES / 1e9,
        commit_network_mb=rates.parameters * TRAINING_BYTES / 1e6 / COMMIT_SECONDS,
        gradients_mb=2 * (1 - 1 / cluster.gpus) * rates.parameters * 4 / 1e6 * rates.gpu_clips / rates.gpu_batch,
    )


def round_clips(gpus: int, batch: float) -> float:
    """Clips of a round that each worker holds, with so many of them in a step's share."""
    return batch * max(1, min(WINDOW_ROWS // MIXING_GROUP, max(LEAST_STEPS, ROUND_ROWS // (gpus * batch))))


def limits(plan: Estimate, cluster: Cluster) -> list[tuple[float, str]]:
    """How much of each resource a corpus takes while every GPU trains from the store, the scarcest first: 1 is all."""
    network, gpus = cluster.network_gbit * NETWORK_MB_PER_GBIT, min(NODE_GPUS, cluster.gpus)
    cores = cluster.gpus * plan.store_cores_per_gpu
    node, tables = gpus * plan.worker_gb, size(plan.worker_gb - plan.windows_gb)
    shares = [
        (plan.driver_gb / DRIVER_GB, f"the driver's memory while it reads the clip table, {size(plan.driver_gb)}"),
        (
            node / NODE_GB,
            f"the memory of a node with {gpus} workers, {size(node)}, {tables} of each for the clip table",
        ),
        (
            plan.gradients_mb / GPU_MB,
            f"the averaging of gradients, {plan.gradients_mb:,.0f} MB/s in and out of each GPU",
        ),
        (plan.store_network_mb / network, f"the network to the storage, {plan.store_network_mb:,.0f} MB/s"),
        (cores / cluster.cpus, f"the CPUs that read, {cores:,.0f} cores"),
    ]
    return sorted(shares, reverse=True)


def breaks_first(corpus: Corpus, plan: Estimate, cluster: Cluster) -> str:
    """The two scarcest resources of a corpus as text."""
    (first, what), (second, then) = limits(plan, cluster)[:2]
    return f"{corpus.name}: {what} ({100 * first:.0f} % of what there is), then {then} ({100 * second:.0f} %)"


def slowest(**seconds: float) -> tuple[str, float]:
    """Name and seconds of the slowest part."""
    return max(seconds.items(), key=lambda item: item[1])


def measured(paths: Sequence[str], rates: Rates) -> Rates:
    """Replace `rates` by those in JSON files of `prepare`, `ingest`, `scale`, `front-end` or `all`.

    The rate of a core is one over the CPU time per clip of all processes of the job, so the load of other processes
    doesn't count. `prepare` takes precedence over `front-end`, which excludes Ray and writing, and `scale`, which reads
    from object storage, over `ingest`. Raises ValueError for other files.
    """
    parts: list[dict[str, Any]] = []
    for path in paths:
        content = json.loads(Path(path).read_text())
        found = [content, *content.get("parts", {}).values()]
        parts += [part for part in found if part.get("part") in ("prepare", "ingest", "scale", "front-end")]
        if not any(part in parts for part in found):
            raise ValueError(
                f"{path} holds no rates: it must come from prepare, ingest, scale, front-end or all --json"
            )
    for part in sorted(parts, key=lambda part: part["part"]):  # front-end, ingest, prepare, scale: the last one wins
        if part["part"] == "ingest":
            rates = replace(rates, ingest_mb=part["mb_per_core_second"])
        elif part["part"] == "scale":
            rates = replace(rates, ingest_mb=part["reading"]["mb_per_core_second"])
        elif part["part"] == "prepare":
            rates = rates.featurizing(1000 / part["cpu_ms"])
        else:
            rates = rates.featurizing(part["clips_per_second"] * part["clip_seconds"] / UNIT_SECONDS)
            if "decode_ms" in part:
                rates = replace(rates, decode_clips=1000 / part["decode_ms"] * part["clip_seconds"] / UNIT_SECONDS)
    return rates


def table(plans: Sequence[tuple[Corpus, Estimate]]) -> str:
    """Plans as a Markdown table."""
    lines = [
        "| corpus | clips | audio | store | prepare | epoch from the store | epoch from the audio | repaid after "
        "| driver's memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for corpus, plan in plans:
        repaid = "never" if plan.epochs_repaid is None else f"{plan.epochs_repaid:.1f} epochs"
        lines.append(
            f"| {corpus.name} ({corpus.hours:,.0f} h) | {plan.clips:,} | {size(plan.audio_gb)} | {size(plan.store_gb)} "
            f"| {duration(plan.prepare_hours)} ({plan.prepare_bottleneck}) "
            f"| {duration(plan.store_epoch_hours)} ({plan.store_bottleneck}) "
            f"| {duration(plan.stream_epoch_hours)} ({plan.stream_bottleneck}) | {repaid} "
            f"| {size(plan.driver_gb)} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan a corpus on a cluster; without --hours, for CAS 2023, TAU 2020, AudioSet and a million hours.

    The bottleneck is given in brackets, and what breaks first below. "From the audio": every epoch decodes and
    featurizes the recordings again.

    `--json` keys: `rates`, `cluster`, `plans` (per corpus, the fields of `Corpus` and of `Estimate`).
    """

    json: str | None = None
    """Write the plan to this JSON file."""
    hours: float | None = None
    """Hours of audio."""
    clip_seconds: float = 10.0
    """Length of the clips, seconds."""
    audio_mb_per_hour: float = 476.0
    """Size of the recordings, MB per hour; the default is 24-bit 44.1 kHz mono WAV."""
    gpus: int = 8
    """GPUs of the cluster."""
    cpus: int = 128
    """CPU cores of the cluster that prepare and ingest may use."""
    network_gbit: float = 100.0
    """Bandwidth between the storage and all nodes together, Gbit/s."""
    measured: tuple[str, ...] = ()
    """JSON files of prepare, ingest, scale, front-end or all, whose rates replace the defaults."""
    prepare_clips: float | None = None
    """Ten-second clips per second and core, from recording to log-mel."""
    decode_clips: float | None = None
    """Ten-second clips per second and core, from recording to waveform."""
    ingest_mb: float | None = None
    """MB per second and core, from the feature store to batches."""
    gpu_clips: float | None = None
    """Ten-second clips per second and GPU in training."""
    parameters: float | None = None
    """Parameters of the model in training."""
    gpu_batch: float | None = None
    """Ten-second clips per step and GPU."""

    def run(self) -> Result:
        """Estimate."""
        for name in ("hours", "clip_seconds", "audio_mb_per_hour", "gpus", "cpus", "network_gbit", *asdict(Rates())):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be positive")
        rates = measured(self.measured, Rates())
        given = {name: getattr(self, name) for name in asdict(rates) if getattr(self, name) is not None}
        rates = replace(rates.featurizing(self.prepare_clips or rates.prepare_clips), **given)
        cluster = Cluster(gpus=self.gpus, cpus=self.cpus, network_gbit=self.network_gbit)
        corpora = [
            replace(corpus, clip_seconds=self.clip_seconds, audio_mb_per_hour=self.audio_mb_per_hour)
            for corpus in (CORPORA if self.hours is None else [Corpus(name="corpus", hours=self.hours)])
        ]
        plans = [(corpus, estimate(corpus, cluster, rates)) for corpus in corpora]
        values = {
            "rates": asdict(rates),
            "cluster": asdict(cluster),
            "plans": [asdict(corpus) | asdict(plan) for corpus, plan in plans],
        }
        origin = (
            "given"
            if given or self.measured
            else "measured on an AMD EPYC; GPU: an H200 at 45 % of its bf16 peak in pre-training ViT-B"
        )
        limited = "\n".join(breaks_first(corpus, plan, cluster) for corpus, plan in plans)
        text = f"{summary(cluster, rates, plans[0][1], origin)}\n\n{table(plans)}\n\nWhat breaks first, with {ASSUMED}:"
        return Result("plan", [], values, f"{text}\n{limited}")


def summary(cluster: Cluster, rates: Rates, plan: Estimate, origin: str) -> str:
    """Rates, cores per GPU, network, windows and checkpoints as text."""
    network = cluster.network_gbit * NETWORK_MB_PER_GBIT
    return (
        f"{cluster.gpus} GPUs, {cluster.cpus} CPU cores, {network:,.0f} MB/s of network. Rates ({origin}): "
        f"{rates.prepare_clips:.0f} ten-second clips/s per core from recording to log-mel, "
        f"{rates.ingest_mb:.0f} MB/s per core from the store, {rates.gpu_clips:.0f} clips/s per GPU.\n"
        f"One GPU needs {plan.store_cores_per_gpu:.1f} cores from the store or "
        f"{plan.stream_cores_per_gpu:.1f} cores from the audio; all GPUs read {plan.store_network_mb:,.0f} MB/s from "
        f"the store or {plan.stream_network_mb:,.0f} MB/s of audio.\n"
        f"With --audio.device gpu {plan.waveform_cores_per_gpu:.1f} cores decode and resample for one GPU "
        f"({plan.stream_cores_per_gpu - plan.waveform_cores_per_gpu:.1f} fewer), and send it "
        f"{plan.waveform_feed_mb:,.0f} MB/s of waveforms instead of {plan.log_mel_feed_mb:,.0f} MB/s of log-mels.\n"
        f"A worker holds {plan.windows_gb:.1f} GB of windows. Checkpoint: {plan.commit_gb:.1f} GB every "
        f"{COMMIT_SECONDS / 60:.0f} min, {plan.commit_network_mb:.0f} MB/s. Gradients: {plan.gradients_mb:,.0f} MB/s "
        f"in and out of each GPU."
    )
