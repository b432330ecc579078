"""Settings of single jobs: predict, embed, audit, export, promote, serve and sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymae.config.values import require, require_choice

LabelLevel = Literal["file", "window"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What jobs/predict.py labels."""

    inputs: tuple[str, ...] = ()
    """Audio files, folders of them, or tables with a filename column; paths or URLs."""
    output: str | None = None
    """CSV or Parquet file to write, or a folder of Parquet files; a path or URL."""
    level: LabelLevel = "file"
    """A row per file, or per window of it as long as the clips that the classifier learnt from, with its start and
    end."""
    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""
    submission: str | None = None
    """The CAS 2023 challenge's evaluation CSV; output is then this table with scene_label filled in from the
    recordings among the inputs."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What jobs/embed.py writes."""

    model: str | None = None
    """Folder of a pre-training or of a classifier, or a models:/ URI; the default is the recipe's own pre-training."""
    layers: tuple[int, ...] = ()
    """Blocks of the encoder, counted from 1, whose outputs are averaged; the default is the last."""
    level: Literal["clip", "frame"] = "clip"
    """One vector per clip, or one per time column of patches."""
    pool: Literal["row_stats", "mean", "cls"] = "row_stats"
    """Of a clip: mean and deviation of every frequency row of patches; the mean of all; the class token."""
    output: str | None = None
    """Folder or URL of the Parquet files."""

    def __post_init__(self) -> None:
        require(
            self.level == "clip" or self.pool == "row_stats",
            f"embed.pool = {self.pool} is of no use to embed.level = frame, which averages each column's patches",
        )


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What jobs/audit.py looks at beside the metadata."""

    same_recording: bool = False
    """Look for held-out clips that sound as if they were cut from a recording of the training side."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What jobs/export.py writes, for use without raymae."""

    model: str | None = None
    """Folder or URL of a classifier or of a pre-training, or a models:/ or runs:/ URI."""
    output: str | None = None
    """Folder or URL to write to: vit.safetensors in timm's names, classifier.onnx or encoder.onnx (with the packages of
    raymae[export]), and export.json, which says how both are used."""


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """When jobs/promote.py makes the candidate (tracking.alias) the champion."""

    alias: str = "champion"
    """Alias that is moved to it."""
    level: float = 0.05
    """Largest p of the paired test over groups: by it the candidate has to be better on a test split, worse on none."""

    def __post_init__(self) -> None:
        require(0 < self.level < 1, f"promote.level = {self.level} must lie in (0, 1)")


MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What jobs/serve.py serves, where, and how much of it at once."""

    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is this machine alone; there is no log-in, so think before you give another."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Processes that hold the classifier; each takes a GPU where the cluster has some (compute.use_gpu), else a CPU."""
    batch: int = 16
    """Most windows, of any requests, in one forward pass. None waits for others: what came in during one pass makes
    the next."""
    queue: int = 32
    """Requests that a replica works on or keeps waiting; beyond them it answers 503."""
    timeout_seconds: float = 60.0
    """Longest that a request may take, its upload (else 408) and its work (else 504)."""
    max_mb: float = 64.0
    """Largest upload, 10^6 bytes (else 413)."""
    max_minutes: float = 10.0
    """Longest recording (else 422)."""

    def __post_init__(self) -> None:
        require(0 < self.port < 2**16, f"serve.port = {self.port} must lie between 1 and 65535")
        for name in ("replicas", "batch", "queue"):
            require(getattr(self, name) >= 1, f"serve.{name} = {getattr(self, name)} must be at least 1")
        for name in ("timeout_seconds", "max_mb", "max_minutes"):
            require(getattr(self, name) > 0, f"serve.{name} = {getattr(self, name)} must be positive")

    @property
    def max_bytes(self) -> int:
        """Largest upload, bytes."""
        return int(self.max_mb * MB)


SEARCHES = ("grid", "random", "optuna")

TRIALS = 20
"""Points of a search that isn't a grid."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over settings (jobs/sweep.py), judged by split val alone; nothing here changes what a trial computes."""

    space: tuple[str, ...] = ()
    """What is tried, each as FIELD=VALUES with any field's dotted path: a list, model.mask_ratio=0.6,0.75,0.9; or a
    range of numbers, finetune.weight_decay=uniform:0..0.1 (uniform: may be left out) or finetune.lr=log:1e-4..1e-2. A
    value of several parts takes +: model.patch_size=16+16,8+8. The default is model.mask_ratio=0.6,0.75,0.9 by what
    accepts pseudo-labels, pseudo_label.coverage=0.3,0.5,0.7 or pseudo_label.confidence_threshold=0.7,0.8,0.9 (in
    consistency training consistency.confidence_threshold=0.8,0.9,0.95), as far as the recipe has them."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination of the lists; random: points drawn with `seed`; optuna: Optuna's TPE, which draws where
    the finished trials were good."""
    trials: int | None = None
    """Points of the searches random and optuna; the default is 20."""
    early_stopping: bool = True
    """Stop trials whose validation is among the worse ones at the same share of the last stage's training (ASHA, Li et
    al. 2020); what they made of shared stages stays."""
    grace: float = 0.4
    """Share of the last stage's training before which no trial is stopped."""
    reduction: float = 2.0
    """One in so many trials passes each of ASHA's rungs, which lie as many times apart."""
    max_concurrent: int | None = None
    """Most trials at a time; the default is what the cluster has room for."""
    cpus_per_trial: float = 1.0
    """CPUs reserved for each trial, which takes as many threads."""
    gpus_per_trial: float | None = None
    """GPUs reserved for each trial, or a share of one; the default is 1 where the cluster has some."""

    def __post_init__(self) -> None:
        require_choice("sweep.search", self.search, SEARCHES)
        require(
            self.trials is None or self.search != "grid",
            f"sweep.trials = {self.trials} has no effect on sweep.search = grid, which tries every combination: choose "
            "random or optuna",
        )
        for name in ("trials", "max_concurrent"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"sweep.{name} = {value} must be at least 1")
        require(0 < self.grace < 1, f"sweep.grace = {self.grace} must lie in (0, 1)")
        require(self.reduction > 1, f"sweep.reduction = {self.reduction} must be larger than 1")
        require(self.cpus_per_trial > 0, f"sweep.cpus_per_trial = {self.cpus_per_trial} must be positive")
        gpus = self.gpus_per_trial
        require(gpus is None or gpus >= 0, f"sweep.gpus_per_trial = {gpus} must not be negative")
