"""Settings of the training stages and of the evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.augment import AugmentConfig
from raymae.config.values import require, require_choice, require_share

RANDOM = "random"
"""The `finetune.init_from` of fine-tuning from random weights."""

LONG_WARMUP = 0.1
"""Share of the training that is warm-up where `warmup_epochs` don't fit; the defaults have 0.09 and 0.07."""

Balance = Literal["none", "class", "class_device", "label_frequency"]

Baseline = Literal["svm", "svm_band_mean", "svm_eq", "svm_robust", "svm_self_trained", "cnn"]

Ablation = Literal["scratch", "frozen", "supervised", "pool", "pool_train"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What pre-training and fine-tuning share: length, batches, optimiser, checkpoints."""

    init_from: str | None = None
    """Weights to start from, instead of random ones: the folder (or URL) of a pre-training or of a classifier, a
    registered classifier (models:/…, runs:/…), or a file .safetensors, .pth, .pt or .bin with a state dict in the names
    of timm's VisionTransformer or of Audio-MAE's public code, whose positions stay fixed in the model. On Hugging
    Face's hub, hf://OWNER/NAME[@REVISION] is such a folder, or a model.safetensors; /FILE.safetensors names another.
    pretrain.init_from continues pre-training from them (with a new decoder if they hold none that fits);
    finetune.init_from takes the place of pre-training: the plan has no such stage, and pretrain.* has no effect; random
    there means no pre-training at all (a folder of that name is ./random)."""
    epochs: float = 33
    """Passes over the stage's clips."""
    global_batch_size: int = 512
    """Clips per optimiser step, over all workers."""
    micro_batch_size: int = 128
    """Most clips per forward pass on a worker; a step accumulates the gradients of several passes where its share is
    larger. Changes no result. Halved once, with a line, where it doesn't fit into a GPU's memory."""
    mixing_group: int | None = None
    """Clips that mixup and MixStyle mix with one another: fixed groups of a step, the least that a worker can have of
    it. Up to global_batch_size / mixing_group workers share a step. None: 8, or the largest of 4, 2 and 1 that divides
    the step. The CNN baseline's batch norm has groups of up to 32, whatever is set here."""
    base_lr: float = 2e-4
    """Learning rate per 256 clips: lr = base_lr x global_batch_size / 256."""
    lr: float | None = None
    """Learning rate itself, in place of base_lr; None: from base_lr."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: float = 3
    """Epochs of linear warm-up of the learning rate; a tenth of `epochs` where it is not shorter than they are."""
    weight_decay: float = 1e-4
    """AdamW's weight decay; one-dimensional parameters have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient; None: no clipping."""
    ema_decay: float | None = None
    """Decay of the exponential moving average (EMA) of the weights, which is what the stage keeps; None: no EMA."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass."""
    compile: bool = False
    """Compile the model's blocks with torch.compile; where that fails they run uncompiled, with a line."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Mode of torch.compile; reduce-overhead replays CUDA graphs, for small models on fast GPUs."""
    activation_checkpointing: bool = False
    """Compute the activations within each block again in the backward pass instead of keeping them: a third more
    computing for a fraction of the memory. Changes no result."""
    commit_minutes: float = 5.0
    """Minutes between two checkpoints of the training state."""
    keep_commits: int = 2
    """Number of checkpoints that are kept."""
    report_steps: int = 20
    """Steps between two reports of metrics."""
    max_bad_steps: int = 10
    """Non-finite losses in a row after which the stage stops; each such step is skipped and counted."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"epochs = {self.epochs} must be positive")
        require(self.global_batch_size >= 1, f"global_batch_size = {self.global_batch_size} must be at least 1")
        group = self.mixing_group
        require(
            group is None or (group >= 1 and self.global_batch_size % group == 0),
            f"mixing_group = {group} must divide global_batch_size = {self.global_batch_size}",
        )
        require(
            self.micro_batch_size >= self.group_size,
            f"micro_batch_size = {self.micro_batch_size} must hold a mixing group, which has {self.group_size} clips: "
            f"set mixing_group to {max(1, self.micro_batch_size)} or less, too",
        )
        require(self.warmup_epochs >= 0, f"warmup_epochs = {self.warmup_epochs} must not be negative")
        require(self.commit_minutes > 0, f"commit_minutes = {self.commit_minutes} must be positive")
        require(self.keep_commits >= 1, f"keep_commits = {self.keep_commits} must be at least 1")
        require(self.report_steps >= 1, f"report_steps = {self.report_steps} must be at least 1")

    @property
    def group_size(self) -> int:
        """Clips of a mixing group."""
        return self.mixing_group or math.gcd(self.global_batch_size, 8)

    @property
    def warmup_share(self) -> float:
        """The share (0 to 1) of the training that is warm-up."""
        return self.warmup_epochs / self.epochs if self.warmup_fits else LONG_WARMUP

    @property
    def warmup_fits(self) -> bool:
        """Whether the warm-up is shorter than the training."""
        return self.warmup_epochs < self.epochs

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return self.base_lr * self.global_batch_size / 256 if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Masked pre-training on every clip of train and pool, without labels; the defaults are Audio-MAE's recipe."""

    augment: AugmentConfig = AugmentConfig()
    """Augmentations."""
    pool_only: bool = False
    """Leave the clips of split train out."""
    probe_clips: int = 500
    """Most labelled clips of train (and of val) for the probes that monitor the features; 0 switches them off.
    Multi-label clips are not probed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init_from != RANDOM, "pretrain.init_from = random is the default: leave it out")
        require(self.probe_clips >= 0, f"pretrain.probe_clips = {self.probe_clips} must not be negative")
        require(
            self.augment.mixup_p == 0,
            f"pretrain.augment.mixup_p = {self.augment.mixup_p} must be 0: mixup mixes labels, and pre-training has no "
            "labels (finetune.augment.mixup_p)",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning of the encoder on labelled clips; the defaults are Audio-MAE's recipe for AS-20K."""

    epochs: float = 60
    """Passes over the labelled clips."""
    global_batch_size: int = 32
    """Clips per optimiser step, over all workers."""
    labels: Literal["single", "multi"] = "single"
    """single: a clip has one class (softmax, cross-entropy, macro accuracy); multi: any number of classes, separated by
    `;` in scene_label (a sigmoid per class, binary cross-entropy, mAP; no pseudo-labels and no student)."""
    base_lr: float = 1e-3
    """Learning rate per 256 clips."""
    warmup_epochs: float = 4
    """Epochs of linear warm-up of the learning rate; a tenth of `epochs` where it is not shorter than they are."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    layer_decay: float = 0.75
    """Each block's learning rate relative to that of the block above it; the head's factor is 1."""
    balance: Balance = "none"
    """What occurs equally often in an epoch. none: each clip; class: each class; class_device: each class on each
    device on which it is labelled; these two are for single-label clips only. label_frequency, for multi-label ones:
    clips are drawn with replacement, each as often as its classes are rare, in proportion to the sum over them of 1 /
    clips of the class, as Audio-MAE does for AudioSet. An epoch has as many draws as there are clips: its 100 epochs of
    200,000 of AS-2M's clips are 10 epochs here."""
    head_init: Literal["zero", "logistic"] = "zero"
    """Initial head. zero: (nearly) zero weights; logistic: logistic regression on the untouched encoder's features of
    the labelled clips without augmentation (linear probing, then fine-tuning), one per class with labels = multi. Each
    feature is divided by its deviation: over these clips or, with random EQ or responses in `augment`, over copies of
    them with those, so that what depends on the recording device counts less."""
    head_lr_scale: float = 1.0
    """The head's learning rate relative to the encoder's."""
    head_epochs: float = 0.0
    """Epochs at the start in which only the head is trained."""
    pool: Literal["mean", "cls", "row_stats"] = "mean"
    """Pooling of the patches. mean: their average; cls: the class token; row_stats: mean and standard deviation of
    every frequency row."""
    layer: int | None = None
    """Number of encoder blocks to use, the later ones are dropped; None: all."""
    segment_seconds: float | None = None
    """Length of the segments in which a longer input is encoded, seconds; their patches are pooled together. With the
    crop length of pre-training, the encoder sees only time positions that it was trained on. None: one sequence."""
    shifts: int = 1
    """Times that a clip is cut into patches in prediction, all of which are pooled together: 2 adds the patches that
    begin half a patch later, 4 those of every quarter. Training cuts each clip once."""
    subtract_band_mean: bool = False
    """Subtract each clip's mean level of every band from the input, as in cepstral mean normalisation (device
    robustness)."""
    with_raw: bool = False
    """With subtract_band_mean: encode the raw clip, too, and give the head both pooled vectors side by side. What a
    device changes is in one half alone. (For the encoder's classifiers; the CNN baseline has no raw input.)"""
    drop_path: float = 0.1
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly: over all classes or, with labels = multi, over the yes and no of each
    class, so that 1 becomes 1 - s / 2 and 0 becomes s / 2."""
    time_mask_ratio: float = 0.2
    """Share of the time columns of patches removed in training."""
    freq_mask_ratio: float = 0.2
    """Share of the frequency rows of patches removed in training."""
    views: int = 1
    """Crops averaged in prediction when augment.crop_seconds is shorter than the clip."""
    augment: AugmentConfig = AugmentConfig(mixup_p=0.5, freq_mask_param=48, time_mask_param=96)
    """Augmentations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("finetune.labels", self.labels, ("single", "multi"))
        for name in ("time_mask_ratio", "freq_mask_ratio", "drop_path", "label_smoothing"):
            require_share(f"finetune.{name}", getattr(self, name))
        require(0 < self.layer_decay <= 1, f"finetune.layer_decay = {self.layer_decay} must lie in (0, 1]")
        require(1 <= self.shifts <= 64, f"finetune.shifts = {self.shifts} must lie between 1 and 64")
        require(1 <= self.views <= 1000, f"finetune.views = {self.views} must lie between 1 and 1000")
        require_choice("finetune.balance", self.balance, get_args(Balance))
        kind = "multi" if self.balance == "label_frequency" else "single"
        require(
            self.balance == "none" or self.labels == kind,
            f"finetune.balance = {self.balance} is for {kind}-label clips: leave it out with finetune.labels = "
            f"{self.labels}",
        )
        require_choice("finetune.head_init", self.head_init, ("zero", "logistic"))
        require(
            self.subtract_band_mean or not self.with_raw,
            "finetune.with_raw = True adds the raw clip to the one without its band mean: it needs "
            "finetune.subtract_band_mean",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Baselines, ablations and probes of the evaluation."""

    baselines: tuple[Baseline, ...] = ("svm", "svm_robust", "cnn")
    """Baselines in every table. SVMs on log-mel statistics: svm, plain; svm_band_mean, with each clip's band mean
    subtracted; svm_eq, with copies through random EQ; svm_robust, with both; svm_self_trained, svm_robust trained also
    on the more confident half of its guesses of the unlabelled clips (single-label clips only). cnn: a CNN from
    scratch. For multi-label clips there is an SVM per class: seconds for a dozen classes, hours for AudioSet."""
    ablation: tuple[Ablation, ...] = ()
    """What each part of the pipeline contributes: further rows, each a fine-tuning as configured from other weights.
    scratch: random weights; frozen: those of the pipeline, untouched, under a logistic regression; supervised:
    supervised_from; pool: masked pre-training on the pool alone; pool_train: on pool and training clips. What equals
    the pipeline's own stages is not trained twice; the last step, pseudo-labels, is the student's row. Rows are
    comparable by their settings, not by their training time."""
    supervised_from: str | None = None
    """Classifier, trained with labels on another data set, that the ablation supervised starts from; named like
    init_from. The pool can't replace it: its labels are not read."""
    cnn: str = "test_resnet"
    """timm name of the CNN baseline; the default is a ResNet of 0.4 M parameters, which suits its few steps."""
    cnn_lr: float | None = None
    """Peak learning rate of the CNN baseline, which starts from random weights; None: that of finetune."""
    cnn_crop_seconds: float | None = None
    """Length of the CNN baseline's random crops, seconds; None: that of finetune."""
    cnn_steps: int | None = None
    """Steps of the CNN baseline's training; None: as many as need the FLOPs of fine-tuning, but no more passes over the
    clips than it has. To leave the CNN out, leave it out of baselines."""
    cnn_most_steps: int | None = None
    """In place of the FLOPs of fine-tuning, for recipes whose fine-tuning is short: so many steps, but no more clips
    than pre-training and fine-tuning take together: the baseline doesn't cost more than what is compared with it."""
    probe_clips: int = 1000
    """Most labelled held-out clips on whose frozen embeddings probes predict device, city and scene, before and after
    each stage; 0 switches them off."""
    played_mistakes: int = 12
    """Most mistakes that report.html plays: 10 s of each recording at most, at a low rate, are in the page itself, so
    whoever has the page can listen to them; 0: none."""
    compare: tuple[str, ...] = ()
    """Two finished evaluations of the same clips (their folders, or their runs' folders) to compare model by model, in
    place of an evaluation; for jobs/evaluate.py alone."""

    def __post_init__(self) -> None:
        require(self.probe_clips >= 0, f"evaluate.probe_clips = {self.probe_clips} must not be negative")
        count = self.played_mistakes
        require(0 <= count <= 12, f"evaluate.played_mistakes = {count} must lie between 0 and 12")
        require(
            len(self.compare) in (0, 2),
            f"evaluate.compare names {len(self.compare)} folders; it takes the two finished evaluations to compare",
        )
        for name in ("cnn_lr", "cnn_crop_seconds", "cnn_steps", "cnn_most_steps"):
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
