"""Settings of compute and tracking, and `Config`, the complete configuration of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from math import ceil
from pathlib import Path
from typing import Literal, get_args

from raymae.config.audio import AudioConfig
from raymae.config.data import FOLDED, DataConfig
from raymae.config.jobs import (
    AuditConfig,
    EmbedConfig,
    ExportConfig,
    PredictConfig,
    PromoteConfig,
    ServeConfig,
    SweepConfig,
)
from raymae.config.model import ModelConfig
from raymae.config.training import EvaluateConfig, FinetuneConfig, PretrainConfig
from raymae.config.unlabelled import ConsistencyConfig, PseudoLabelConfig, Unlabelled
from raymae.config.values import nearest, redact, require, require_choice, require_finite, to_dict


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Resources that a job takes of the cluster; nothing here changes a result."""

    address: str | None = None
    """Ray address; None: the job's own cluster (RAY_ADDRESS), or a new local one."""
    num_workers: int | None = None
    """Training workers, for which a cluster's autoscaler is asked to start nodes; None: one per GPU of the cluster, as
    GPUs come, or one on CPUs."""
    min_workers: int = 1
    """Fewest training workers with which a run starts, or resumes after nodes are lost; more join at a checkpoint."""
    wait_minutes: float = 5.0
    """Minutes to wait for nodes that are asked for or lost, and for workers to start, before training goes on with
    fewer."""
    use_gpu: bool | None = None
    """Use GPUs; None: if the cluster has any, or its autoscaler can start nodes with some."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several training workers holds. ddp: all weights, gradients, moments and averaged weights; fsdp: a
    share of them, for models that are too large otherwise, at the cost of more communication. Results differ by
    rounding alone."""
    fsdp_replicas: int = 1
    """Groups of workers, each of which holds all shards with parallel = fsdp (a two-dimensional mesh): 1 spreads them
    over all workers; the number of machines keeps the gathering of weights within each. Has to divide the workers."""
    strict_fp32: bool = False
    """Compute float32 products of matrices on GPUs in float32; by default they are rounded to TF32."""
    cpus_per_worker: float = 1
    """CPUs reserved for each training worker."""
    torch_threads: int | None = None
    """Threads of torch in a training worker; None: the machine's cores, divided among its workers."""
    data_workers: int | None = None
    """Most CPUs that decode audio; None: all of the cluster that nothing else reserves, those included that an
    autoscaler adds."""
    feed_windows: int = 8192
    """Windows of 128 clips given to Ray Data at once, which takes up to 1 ms for each; more follow when they are used
    up."""
    cache: str | None = None
    """Folder on every node's own disk (/nvme/raymae) that keeps what training reads of an uncompressed feature store on
    object storage, for later epochs and runs, and the clip table that the node's processes share; None: nothing is kept
    of the store, and the table lies among the temporary files."""
    cache_gb: float = 100.0
    """Most GB of features in `cache`; at the limit the oldest are removed."""
    max_failures: int = 3
    """How often a group of training workers is restarted after failures without a new checkpoint between them."""
    stall_minutes: float = 15.0
    """Minutes without a training step, waiting for data included (three times as many for the first step), after which
    a worker writes the stacks of its threads and exits, so that training restarts from the last checkpoint."""
    profile_steps: int = 0
    """Training steps of each stage, after the first five, that are profiled into its folder (profile/); 0: none."""

    def __post_init__(self) -> None:
        require(self.min_workers >= 1, f"compute.min_workers = {self.min_workers} must be at least 1")
        require(self.fsdp_replicas >= 1, f"compute.fsdp_replicas = {self.fsdp_replicas} must be at least 1")
        require(
            self.fsdp_replicas == 1 or self.parallel == "fsdp",
            f"compute.fsdp_replicas = {self.fsdp_replicas} has no effect with compute.parallel = {self.parallel}",
        )
        local = self.cache is None or ("://" not in self.cache and Path(self.cache).is_absolute())
        require(local, f"compute.cache = {redact(self.cache or '')} must be an absolute path of a local folder")
        require(self.cache_gb > 0, f"compute.cache_gb = {self.cache_gb} must be positive")
        require(
            self.cache is not None or self.cache_gb == type(self).cache_gb,
            f"compute.cache_gb = {self.cache_gb} has no effect without compute.cache",
        )
        require(self.wait_minutes > 0, f"compute.wait_minutes = {self.wait_minutes} must be positive")
        require(self.stall_minutes > 0, f"compute.stall_minutes = {self.stall_minutes} must be positive")
        require(self.profile_steps >= 0, f"compute.profile_steps = {self.profile_steps} must not be negative")


SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc")
"""Beginnings of MLflow's tracking URIs; a database may name its driver (postgresql+psycopg2:), plug-ins add others."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow tracking and model registry."""

    uri: str | None = None
    """MLflow tracking URI; None: a SQLite file in the storage."""
    experiment: str = "raymae"
    """Name of the MLflow experiment."""
    registered_model: str = "raymae-scene-classifier"
    """Name of the model in the registry."""
    alias: str = "candidate"
    """Registry alias that the new version gets."""
    patience_minutes: float = 5.0
    """Minutes that a job waits at its end for an MLflow server that is down; the next job delivers what is missing."""

    def __post_init__(self) -> None:
        scheme = re.match(r"([\w.-]+)(?:\+\w+)?:", self.uri or "")
        known = (*SCHEMES, *(one.name for one in entry_points(group="mlflow.tracking_store")))
        require(
            scheme is None or scheme[1] in known,
            f"tracking.uri = {redact(self.uri or '')} can't be one of MLflow's: it should begin with "
            f"{', '.join(f'{name}:' for name in known)} or name a folder{nearest(scheme[1] if scheme else '', known)}",
        )
        require(self.patience_minutes >= 0, f"tracking.patience_minutes = {self.patience_minutes} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The complete configuration of a run."""

    recipe: str = ""
    """Name of the recipe that these settings are based on."""
    seed: int = 0
    """Random seed of weights, order, masks and augmentation."""
    seeds: int = 1
    """Run jobs/evaluate.py or jobs/pipeline.py for this many seeds, `seed` and those after it, on the same splits, and
    write mean and standard deviation of every score as a table, CSV and LaTeX. In a pipeline the last seed's model
    keeps the alias."""
    folds: bool = False
    """Run jobs/evaluate.py or jobs/pipeline.py once for every fold in data.fold_column, each time with that fold as
    split test, and write mean and standard deviation of every score as with `seeds` (folds.csv, folds.tex). In a
    pipeline the last fold's model keeps the alias."""
    unlabelled: tuple[Unlabelled, ...] = ("pseudo_labels",)
    """Uses of the unlabelled training clips after fine-tuning. Each gives a classifier that is evaluated; the last one
    named gives the final one. pseudo_labels: the teacher labels the clips, and a student is trained on all clips;
    consistency: a clip's prediction must not change with the device. Empty: the fine-tuned classifier is the final one,
    as always for multi-label clips."""
    storage: str = "raymae-storage"
    """Folder or URL (s3://, gs://, …) for everything that is written."""
    json: str | None = None
    """Write the job's result to this JSON file."""
    dry_run: bool = False
    """Print the plan, train two steps of each training stage at full size on generated recordings, and estimate what
    the run would take and whether it would fit; nothing of it is kept. A published data set need not be here."""
    max_hours: float | None = None
    """Hours from the job's start after which it stops at a checkpoint (exit status 75); the same command resumes it."""
    audio: AudioConfig = AudioConfig()
    """The front end."""
    data: DataConfig = DataConfig()
    """The clips."""
    model: ModelConfig = ModelConfig()
    """The masked autoencoder."""
    pretrain: PretrainConfig = PretrainConfig()
    """Pre-training."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Fine-tuning, of the teacher and of the student."""
    consistency: ConsistencyConfig = ConsistencyConfig()
    """Consistency training."""
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    """Pseudo-labels."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    compute: ComputeConfig = ComputeConfig()
    """Resources."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow tracking and model registry."""
    predict: PredictConfig = PredictConfig()
    """Prediction."""
    serve: ServeConfig = ServeConfig()
    """The HTTP server of jobs/serve.py."""
    embed: EmbedConfig = EmbedConfig()
    """Embeddings."""
    export: ExportConfig = ExportConfig()
    """Export to timm and ONNX."""
    promote: PromoteConfig = PromoteConfig()
    """Promotion of the candidate to champion."""
    audit: AuditConfig = AuditConfig()
    """The leak audit."""
    sweep: SweepConfig = SweepConfig()
    """The hyper-parameter sweep of jobs/sweep.py."""

    def __post_init__(self) -> None:
        require_finite(self)
        require(self.seed >= 0, f"seed = {self.seed} must not be negative")
        require(self.seeds >= 1, f"seeds = {self.seeds} must be at least 1")
        self._check_folds()
        require(self.max_hours is None or self.max_hours > 0, f"max_hours = {self.max_hours} must be positive")
        self._check_unlabelled()
        self._check_device()
        self._check_masks()
        require(
            self.promote.alias != self.tracking.alias,
            f"promote.alias = {self.promote.alias} is tracking.alias, the candidate's: the two have to differ",
        )
        hop = self.audio.hop_length / self.audio.sample_rate
        for name, length in {
            "pretrain.augment.crop_seconds": self.pretrain.augment.crop_seconds,
            "finetune.augment.crop_seconds": self.finetune.augment.crop_seconds,
            "finetune.segment_seconds": self.finetune.segment_seconds,
            "evaluate.cnn_crop_seconds": self.evaluate.cnn_crop_seconds,
        }.items():
            require(
                length is None or length <= self.audio.clip_seconds,
                f"{name} = {length} must not exceed audio.clip_seconds = {self.audio.clip_seconds}",
            )
            require(
                length is None or length >= hop,
                f"{name} = {length} must hold a frame: they are {hop:g} s apart (audio.hop_length)",
            )
        require(
            self.model.patch_size[1] <= self.audio.n_mels,
            f"model.patch_size = {self.model.patch_size} is wider than audio.n_mels = {self.audio.n_mels}",
        )
        require(
            not (self.pretrain.init_from and self.finetune.init_from),
            "finetune.init_from takes the place of pre-training, so pretrain.init_from would have no effect: set one",
        )
        require(
            not (self.pseudo_label.views and self.finetune.subtract_band_mean and not self.finetune.with_raw),
            f"pseudo_label.views = {self.pseudo_label.views} has no effect with finetune.subtract_band_mean, which "
            "removes random EQ from each clip: set pseudo_label.views to 0, or --finetune.no-subtract-band-mean",
        )
        require(
            self.finetune.labels == "single" or "svm_self_trained" not in self.evaluate.baselines,
            "evaluate.baselines = svm_self_trained is for single-label clips; leave it out with finetune.labels multi",
        )
        layer = self.finetune.layer
        require(
            layer is None or 1 <= layer <= self.model.depth,
            f"finetune.layer = {layer} must lie between 1 and model.depth = {self.model.depth}",
        )

    def __repr__(self) -> str:
        return f"Config({to_dict(self)})"  # without credentials: Ray's dashboard shows arguments

    def _check_folds(self) -> None:
        """Check `folds` against the settings that say what is run."""
        if not self.folds:
            return
        require(
            self.data.fold_column is not None or self.data.dataset in FOLDED,
            "folds needs data.fold_column: the column of data.tables that holds each clip's fold; or a data set with "
            f"folds ({', '.join(FOLDED)})",
        )
        require(
            self.data.test_fold is None,
            f"folds tests on every fold in turn, so data.test_fold = {self.data.test_fold!r} has no effect with it: "
            "leave one of them out",
        )
        require(
            self.seeds == 1, f"folds and seeds = {self.seeds}: run either all folds with one seed, or several seeds"
        )

    def _check_device(self) -> None:
        """Check where log-mels are made against what needs the waveforms there."""
        if self.audio.device == "gpu":
            require(
                self.data.store == "none",
                "audio.device = gpu makes log-mels of waveforms, and the store holds log-mels: set data.store = none",
            )
            return
        for section in ("pretrain", "finetune"):
            for name in getattr(self, section).augment.of_waveforms:
                value = getattr(getattr(self, section).augment, name)
                raise ValueError(
                    f"{section}.augment.{name} = {value} changes waveforms, of which only log-mels reach the training "
                    "worker: set audio.device = gpu, and data.store = none with it"
                )

    def _check_masks(self) -> None:
        """Check masks against the patches that a clip has in pre-training."""
        model, frames = self.model, self.audio.frames_of(self.pretrain.augment.crop_seconds)
        require(
            self.finetune.shifts <= model.patch_size[0],
            f"finetune.shifts = {self.finetune.shifts} cuts begin at the same frames more than once: a patch has "
            f"{model.patch_size[0]} (model.patch_size)",
        )
        columns, rows = ceil(frames / model.patch_size[0]), ceil(self.audio.n_mels / model.patch_size[1])
        grid = f"a clip of pre-training has {columns} x {rows} patches"
        require(
            model.masks_per_clip <= columns * rows,
            f"model.masks_per_clip = {model.masks_per_clip} are more masks than patches: {grid}",
        )
        if model.mask_strategy != "inverse_block":
            return
        require(
            columns * rows * (1 - model.mask_ratio) >= 1,
            f"model.mask_ratio = {model.mask_ratio} leaves no patch: {grid}",
        )
        require(
            model.mask_block < max(columns, rows) or model.mask_block == 1,
            f"model.mask_block = {model.mask_block} is a block of the whole clip, not a part to keep: {grid}",
        )

    def _check_unlabelled(self) -> None:
        """Check `unlabelled`, and consistency training against fine-tuning."""
        for name in self.unlabelled:
            require_choice("unlabelled", name, get_args(Unlabelled))
        require(
            len(set(self.unlabelled)) == len(self.unlabelled),
            f"unlabelled = {', '.join(self.unlabelled)} names one twice: give each once",
        )
        require(
            self.finetune.labels == "single" or "consistency" not in self.unlabelled,
            "unlabelled = consistency is for single-label clips: leave it out with finetune.labels = multi",
        )
        if self.pseudo_label.labelled_share is not None:
            self.pseudo_label.clips_of(self.finetune.group_size)
        micro, group = self.consistency.micro_batch_size, self.finetune.group_size
        require(
            micro is None or micro >= group,
            f"consistency.micro_batch_size = {micro} must hold a mixing group of fine-tuning, which has {group} clips",
        )
        require(
            self.consistency.teacher == "self" or self.finetune.ema_decay is not None,
            "consistency.teacher = ema needs the average of the weights: set finetune.ema_decay",
        )
