"""Settings of single jobs: predict, embed, audit, export, promote, serve and sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymae.config.values import require, require_choice

LabelLevel = Literal["file", "window"]

GraphInput = Literal["log_mel", "audio"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Inputs, classifier and output of jobs/predict.py."""

    inputs: tuple[str, ...] = ()
    """Audio files, folders of them, or tables with a filename column; paths or URLs."""
    output: str | None = None
    """CSV or Parquet file to write, or a folder of Parquet files; a path or URL."""
    level: LabelLevel = "file"
    """file: a row per file; window: a row per window as long as the classifier's training clips, with its start and
    end."""
    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""
    submission: str | None = None
    """The CAS 2023 challenge's evaluation CSV; the output is then this table with scene_label filled in from the
    recordings among the inputs."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Encoder, pooling and output of jobs/embed.py."""

    model: str | None = None
    """Folder of a pre-training or of a classifier, or a models:/ URI; None: the recipe's own pre-training."""
    layers: tuple[int, ...] = ()
    """Encoder blocks, counted from 1, whose outputs are averaged; empty: the last."""
    level: Literal["clip", "frame"] = "clip"
    """clip: one vector per clip; frame: one per time column of patches."""
    pool: Literal["row_stats", "mean", "cls"] = "row_stats"
    """Pooling of a clip. row_stats: mean and standard deviation of every frequency row of patches; mean: the mean of
    all patches; cls: the class token."""
    output: str | None = None
    """Folder or URL to write the Parquet files to."""

    def __post_init__(self) -> None:
        require(
            self.level == "clip" or self.pool == "row_stats",
            f"embed.pool = {self.pool} has no effect with embed.level = frame, which averages each column's patches",
        )


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What jobs/audit.py checks besides the metadata."""

    same_recording: bool = False
    """Search for held-out clips that sound as if they were cut from a recording of the training side; estimate their
    share, with an interval, where the table has groups."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Model and output of jobs/export.py, for use without raymae."""

    model: str | None = None
    """Folder or URL of a classifier or of a pre-training, or a models:/ or runs:/ URI."""
    output: str | None = None
    """Folder or URL to write to: vit.safetensors with timm's parameter names, an ONNX graph (needs the packages of
    raymae[export]), and export.json, which says how to use both."""
    input: GraphInput = "log_mel"
    """Input of the ONNX graph. log_mel: log-mels of a clip's length, of which classifier.onnx or encoder.onnx computes
    logits or tokens; audio: waveforms of any length, of which audio_classifier.onnx computes class probabilities, with
    the front end, the cutting into windows and their average inside."""


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """When jobs/promote.py makes the candidate (tracking.alias) the champion."""

    alias: str = "champion"
    """Registry alias that is moved to the candidate."""
    level: float = 0.05
    """Significance level of the paired test over groups: the candidate has to be better on a test split, by p-values
    corrected for their number (Holm), and worse on none."""
    over: Literal["champion", "baselines"] = "champion"
    """What the candidate has to be better than. champion: the champion, if there is one; baselines: also the best
    baseline of its own evaluation, the first candidate, too."""

    def __post_init__(self) -> None:
        require_choice("promote.over", self.over, ("champion", "baselines"))
        require(0 < self.level < 1, f"promote.level = {self.level} must lie in (0, 1)")


MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Classifier, address and limits of jobs/serve.py."""

    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine alone. There is no log-in: think before you
    change it."""
    port: int = 8000
    """Port to listen on."""
    replicas: int = 1
    """Processes that hold the classifier; each takes a GPU if the cluster has any (compute.use_gpu), else a CPU."""
    batch: int = 16
    """Most windows, of any requests, in one forward pass. No window waits for a batch to fill: those that arrive during
    one pass form the next."""
    queue: int = 32
    """Most requests that a replica works on or keeps waiting (else status 503)."""
    timeout_seconds: float = 60.0
    """Longest time for a request, its upload (else status 408) and its processing (else 504), seconds."""
    max_mb: float = 64.0
    """Largest upload, 10^6 bytes (else status 413)."""
    max_minutes: float = 10.0
    """Longest recording, minutes (else status 422)."""

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


SEARCHES = ("grid", "random", "optuna", "population")

TRIALS, MEMBERS = 20, 8
"""Default numbers of trials of the searches random and optuna, and of members of a population."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Hyper-parameter sweep (jobs/sweep.py), scored on split val alone; nothing here changes what a trial computes."""

    space: tuple[str, ...] = ()
    """Settings to vary, each as FIELD=VALUES with a field's dotted path: a list, model.mask_ratio=0.6,0.75,0.9; or a
    range of numbers, finetune.weight_decay=uniform:0..0.1 (uniform: may be left out) or finetune.lr=log:1e-4..1e-2.
    Parts of a value are joined by +: model.patch_size=16+16,8+8. Empty: model.mask_ratio=0.6,0.75,0.9 and the
    acceptance of pseudo-labels, pseudo_label.coverage=0.3,0.5,0.7 or pseudo_label.confidence_threshold=0.7,0.8,0.9 (in
    consistency training consistency.confidence_threshold=0.8,0.9,0.95), as far as the recipe uses them."""
    search: Literal["grid", "random", "optuna", "population"] = "grid"
    """grid: every combination of the lists; random: points drawn with `seed`; optuna: Optuna's TPE, which draws near
    good finished trials; population: population-based training (Jaderberg et al. 2017), whose trials train side by side
    and change the ranges of sweep.space between parts of the last stage's training: the worst ones go on from the
    weights of the best, with values near theirs."""
    trials: int | None = None
    """Number of trials of the searches random and optuna, None: 20; members of a population, None: 8."""
    objectives: tuple[Literal["score", "flops"], ...] = ("score",)
    """What the search optuna goes for. score flops: the score and the FLOPs of training, for points that no other beats
    in both; stopping has to be none then."""
    generations: int = 4
    """Equal parts of the last stage's training, between which a population changes its values."""
    exploit_share: float = 0.25
    """Share of a population that after each generation goes on from a member of the best such share."""
    prefer: Literal["best", "cheap"] = "best"
    """Which point best.json holds. best: the one of the highest score; cheap: of the points that a paired test over the
    groups of split val can't tell from it, the one whose training takes the fewest FLOPs."""
    stopping: Literal["asha", "median", "none"] = "asha"
    """Stop trials early, by their validation scores; shared stages that they finished are kept. asha: the worse ones at
    the same share of the last stage's training (Li et al. 2020); median: those whose best score lies below the median
    of the others' mean scores so far (Golovin et al. 2017); none: every trial runs to its
    end. No part of the search population, which stops none."""
    grace: float = 0.4
    """Share of the last stage's training before which no trial is stopped."""
    reduction: float = 2.0
    """ASHA's reduction factor: one in so many trials passes each rung; rungs are at grace, grace x reduction, …"""
    max_concurrent: int | None = None
    """Most trials at a time; None: as many as fit on the cluster."""
    workers_per_trial: int = 1
    """Training workers of each trial. 1: it trains in its own process; more: on a group of Ray Train's workers, all
    placed at once, over several nodes where they don't fit on one. A stage that trials share has at least as many; on
    GPUs, the cluster's, divided by the shared stages that can run side by side."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each worker of a trial, and its threads."""
    gpus_per_worker: float | None = None
    """GPUs reserved for each worker of a trial; a share of one, such as 0.25, lets small trials share a GPU. None: 1 if
    the cluster has GPUs."""

    def __post_init__(self) -> None:
        require_choice("sweep.search", self.search, SEARCHES)
        require_choice("sweep.prefer", self.prefer, ("best", "cheap"))
        require_choice("sweep.stopping", self.stopping, ("asha", "median", "none"))
        require(
            self.trials is None or self.search != "grid",
            f"sweep.trials = {self.trials} has no effect on sweep.search = grid, which tries every combination: choose "
            "random, optuna or population",
        )
        for name in ("trials", "max_concurrent", "workers_per_trial"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"sweep.{name} = {value} must be at least 1")
        require(0 < self.grace < 1, f"sweep.grace = {self.grace} must lie in (0, 1)")
        require(self.reduction > 1, f"sweep.reduction = {self.reduction} must be larger than 1")
        require(self.cpus_per_worker > 0, f"sweep.cpus_per_worker = {self.cpus_per_worker} must be positive")
        gpus, workers = self.gpus_per_worker, self.workers_per_trial
        require(gpus is None or gpus >= 0, f"sweep.gpus_per_worker = {gpus} must not be negative")
        require(gpus is None or gpus < 1 or gpus % 1 == 0, f"sweep.gpus_per_worker = {gpus} must be whole above 1")
        require(
            gpus is None or workers == 1 or gpus in (0, 1),
            f"sweep.gpus_per_worker = {gpus} must be 0 or 1 with sweep.workers_per_trial = {workers}: each worker of a "
            "group trains on a GPU of its own",
        )
        objectives = self.objectives
        require(
            objectives in (("score",), ("score", "flops")),
            f"sweep.objectives = {' '.join(objectives) or 'empty'} must be score, or score flops",
        )
        require(
            len(objectives) == 1 or (self.search == "optuna" and self.stopping == "none"),
            "sweep.objectives = score flops needs sweep.search = optuna and sweep.stopping = none, since a trial that "
            f"is stopped has no comparable cost (now {self.search} and {self.stopping})",
        )
        self._check_population()

    def _check_population(self) -> None:
        require(self.generations >= 2, f"sweep.generations = {self.generations} must be at least 2")
        share = self.exploit_share
        require(0 < share <= 0.5, f"sweep.exploit_share = {share} must lie in (0, 0.5]")
        of_others = ("grace", "reduction") if self.search == "population" else ("generations", "exploit_share")
        for name in of_others:
            value, default = getattr(self, name), getattr(SweepConfig, name)
            require(
                value == default,
                f"sweep.{name} = {value} has no effect with sweep.search = {self.search}: leave it at {default}",
            )
        members = self.trials
        require(
            self.search != "population" or members is None or members >= 2,
            f"sweep.trials = {members} is no population: the worst go on from the best, which takes 2 or more",
        )

    @property
    def count(self) -> int:
        """Number of trials of a search that isn't a grid."""
        return self.trials or (MEMBERS if self.search == "population" else TRIALS)

    @property
    def deciding(self) -> dict[str, float]:
        """What decides, beside space and seed, which trials end and how the others go on."""
        if self.search == "population":
            return {"trials": self.count, "generations": self.generations, "exploit_share": self.exploit_share}
        if len(self.objectives) > 1:
            return {"objectives": len(self.objectives)}
        rules: dict[str, dict[str, float]] = {
            "asha": {"grace": self.grace, "reduction": self.reduction},
            "median": {"median": self.grace},
        }
        return rules.get(self.stopping, {})
