"""The training stages and the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.augment import AugmentConfig
from raymae.config.values import require, require_choice, require_share

RANDOM = "random"
"""The `init_from` of a fine-tuning that starts from random weights."""

Baseline = Literal["svm", "svm_band_mean", "svm_eq", "svm_robust", "svm_self_trained", "cnn"]

Ablation = Literal["scratch", "supervised", "pool", "pool_train"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What pre-training and fine-tuning share: length, batches, optimiser, commits."""

    init_from: str | None = None
    """Weights to start from, instead of random ones: the folder (or URL) of a pre-training or of a classifier, a
    registered classifier (models:/…, runs:/…), or a file .safetensors, .pth, .pt or .bin with a state dict in the names
    of timm's VisionTransformer or of Audio-MAE's public code, whose positions stay fixed in the model.
    pretrain.init_from goes on with pre-training from them (its decoder starts afresh where they hold none that fits);
    finetune.init_from takes the place of pre-training: the plan has no such stage, and pretrain.* has no effect; random
    there means no pre-training at all (a folder of that name is ./random)."""
    epochs: float = 33
    """Passes over the stage's clips."""
    global_batch_size: int = 512
    """Clips per optimiser step, over all workers."""
    micro_batch_size: int = 16
    """Clips per forward pass; gradients of global / micro forward passes make a step, shared by the workers."""
    base_lr: float = 2e-4
    """Learning rate per 256 clips: lr = base_lr x global_batch_size / 256."""
    lr: float | None = None
    """Learning rate itself; takes the place of base_lr."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 3
    """Epochs of linear warm-up."""
    weight_decay: float = 1e-4
    """AdamW's weight decay; parameters of one dimension have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moments."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient."""
    ema_decay: float | None = None
    """Decay of the average of the weights; the average is what the stage hands on. Off by default."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass."""
    compile: bool = False
    """Compile the model with torch.compile."""
    commit_minutes: float = 5.0
    """Minutes between two commits of the training state."""
    keep_commits: int = 2
    """How many commits are kept."""
    report_steps: int = 20
    """Steps between two lines of metrics."""
    max_bad_steps: int = 10
    """Non-finite losses in a row after which the stage stops (each one is skipped and counted)."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"epochs = {self.epochs} must be positive")
        require(
            self.micro_batch_size >= 1 and self.global_batch_size % self.micro_batch_size == 0,
            f"global_batch_size = {self.global_batch_size} must be a multiple of "
            f"micro_batch_size = {self.micro_batch_size}",
        )
        require(
            self.warmup_epochs < self.epochs,
            f"warmup_epochs = {self.warmup_epochs} must be smaller than epochs = {self.epochs}",
        )
        require(self.commit_minutes > 0, f"commit_minutes = {self.commit_minutes} must be positive")
        require(self.keep_commits >= 1, f"keep_commits = {self.keep_commits} must be at least 1")
        require(self.report_steps >= 1, f"report_steps = {self.report_steps} must be at least 1")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.base_lr * self.global_batch_size / 256 if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked pre-training on every clip of train and pool, without labels (Audio-MAE's recipe by default)."""

    augment: AugmentConfig = AugmentConfig()
    """Augmentations."""
    pool_only: bool = False
    """Leave the clips of the training split out."""
    probe_clips: int = 500
    """Most labelled clips of train (and of val) that the probes watching the features take; 0 switches them off.
    Clips of several classes are not probed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init_from != RANDOM, "pretrain.init_from = random is what it does by itself: leave it out")
        require(self.probe_clips >= 0, f"pretrain.probe_clips = {self.probe_clips} must not be negative")
        require(
            self.augment.mixup_p == 0,
            f"pretrain.augment.mixup_p = {self.augment.mixup_p} must be 0: mixup mixes labels, which pre-training has "
            "none of (finetune.augment.mixup_p)",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning of the encoder on labelled clips (Audio-MAE's AS-20K recipe by default)."""

    epochs: float = 60
    """Passes over the labelled clips."""
    global_batch_size: int = 32
    """Clips per optimiser step, over all workers."""
    labels: Literal["single", "multi"] = "single"
    """single: a clip has one class (softmax, cross-entropy, macro accuracy); multi: any number of them, separated by
    `;` in scene_label (a sigmoid per class, binary cross-entropy, mAP; no pseudo-labels and no student)."""
    base_lr: float = 1e-3
    """Learning rate per 256 clips."""
    warmup_epochs: float = 4
    """Epochs of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    layer_decay: float = 0.75
    """Each block's learning rate over that of the block above it; the head's factor is 1."""
    balance: Literal["none", "class", "class_device"] = "none"
    """Let each class, or each class on each device that it is labelled on, come equally often in an epoch (one class a
    clip only); none: each clip."""
    head_init: Literal["zero", "logistic"] = "zero"
    """Where the head begins: at (nearly) zero weights, or at a logistic regression on what the untouched encoder makes
    of the labelled clips as they are (linear probing, then fine-tuning); one for each class with labels = multi."""
    head_lr_scale: float = 1.0
    """The head's learning rate over the encoder's."""
    head_epochs: float = 0.0
    """Epochs at the start in which only the head is trained."""
    pool: Literal["mean", "cls", "row_stats"] = "mean"
    """mean: average of the patches; cls: class token; row_stats: mean and deviation of every frequency row."""
    layer: int | None = None
    """Read the encoder after this many blocks (the later ones are dropped); the default reads all."""
    segment_seconds: float | None = None
    """Read a longer input in segments of this length, whose patches are pooled together; with that of pre-training's
    crops, the encoder sees no time position that it wasn't trained at. The default is one sequence."""
    subtract_band_mean: bool = False
    """Remove each clip's mean level of every band from the input (device robustness)."""
    with_raw: bool = False
    """With subtract_band_mean: read each clip as it is, too; what is pooled of both stands side by side in the head's input. What a
    device changes is in one half alone. (Of the encoder's classifiers; the CNN baseline centres.)"""
    drop_path: float = 0.1
    """Stochastic depth of the last block; linear from 0."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly: over all classes or, with labels = multi, over the yes and no of each
    class, so that 1 becomes 1 - s / 2 and 0 becomes s / 2."""
    time_mask_ratio: float = 0.2
    """Share of time columns of patches removed while training."""
    freq_mask_ratio: float = 0.2
    """Share of frequency rows of patches removed while training."""
    views: int = 1
    """Crops averaged in prediction when crop_seconds is shorter than the clip."""
    augment: AugmentConfig = AugmentConfig(mixup_p=0.5, freq_mask_param=48, time_mask_param=96)
    """Augmentations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("finetune.labels", self.labels, ("single", "multi"))
        for name in ("time_mask_ratio", "freq_mask_ratio", "drop_path", "label_smoothing"):
            require_share(f"finetune.{name}", getattr(self, name))
        require(0 < self.layer_decay <= 1, f"finetune.layer_decay = {self.layer_decay} must lie in (0, 1]")
        require(1 <= self.views <= 1000, f"finetune.views = {self.views} must lie between 1 and 1000")
        require_choice("finetune.balance", self.balance, ("none", "class", "class_device"))
        require(
            self.balance == "none" or self.labels == "single",
            f"finetune.balance = {self.balance} is for clips of one class: leave it out with finetune.labels = multi",
        )
        require_choice("finetune.head_init", self.head_init, ("zero", "logistic"))
        require(
            self.subtract_band_mean or not self.with_raw,
            "finetune.with_raw sets the clip as it is beside the centred one: it needs finetune.subtract_band_mean",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the final table compares."""

    baselines: tuple[Baseline, ...] = ("svm", "svm_robust", "cnn")
    """Baselines in every table. SVMs on log-mel statistics: svm, plain; svm_band_mean, without each clip's mean level of
    every band; svm_eq, with copies through random devices; svm_robust, both of these; svm_self_trained, the same
    with the surer half of its guesses of the unlabelled clips (not for clips of several classes). cnn: from scratch.
    Where clips have several classes the SVMs are one per class: seconds for a dozen classes, hours for AudioSet."""
    ablation: tuple[Ablation, ...] = ()
    """What each part of the pipeline brings: further rows, each a fine-tuning as configured that starts from elsewhere.
    scratch: random weights; supervised: supervised_from; pool: masked pre-training on the pool alone; pool_train: on
    pool and training clips. What is the pipeline's own way is not trained twice; the last step, pseudo-labels, is the
    student's row. Rows are comparable by their settings, not by their seconds."""
    supervised_from: str | None = None
    """Classifier, trained with labels on another data set, that the ablation supervised starts from; named like
    init_from. The pool can't stand in for it: its labels are not read."""
    cnn: str = "test_resnet"
    """timm name of the CNN baseline; the default is a ResNet of 0.4 M parameters, which suits the seconds it is given."""
    cnn_lr: float | None = None
    """Peak learning rate of the CNN baseline, which starts from random weights; the default is that of finetune."""
    cnn_crop_seconds: float | None = None
    """Length of the CNN baseline's random crops; the default is that of finetune."""
    cnn_seconds: float | None = None
    """Seconds of work (on a CPU those of the training thread) of the CNN baseline; the default is the fine-tuning's."""
    probe_clips: int = 1000
    """Most labelled held-out clips on whose frozen embeddings probes read device, city and scene, before and after each
    stage; 0 switches them off."""
    compare: tuple[str, ...] = ()
    """Two finished evaluations of the same clips (their folders, or their runs') that are compared, model by model, in
    place of an evaluation; of jobs/evaluate.py alone."""

    def __post_init__(self) -> None:
        require(self.probe_clips >= 0, f"evaluate.probe_clips = {self.probe_clips} must not be negative")
        require(
            len(self.compare) in (0, 2),
            f"evaluate.compare names {len(self.compare)} folders; it takes the two finished evaluations to compare",
        )
        for name in ("cnn_lr", "cnn_crop_seconds", "cnn_seconds"):
            value = getattr(self, name)
            require(value is None or value > 0, f"evaluate.{name} = {value} must be positive")
        for name in self.ablation:
            require_choice("evaluate.ablation", name, get_args(Ablation))
        require(
            len(set(self.ablation)) == len(self.ablation),
            f"evaluate.ablation = {', '.join(self.ablation)} names one twice: give each once",
        )
        require(
            "supervised" not in self.ablation or self.supervised_from is not None,
            "evaluate.ablation = supervised needs evaluate.supervised_from: the folder of a classifier trained with "
            "labels on another data set (jobs/finetune.py there, with --finetune.init-from random)",
        )
        require(
            self.supervised_from is None or "supervised" in self.ablation,
            f"evaluate.supervised_from = {self.supervised_from} has no effect without evaluate.ablation = supervised",
        )
