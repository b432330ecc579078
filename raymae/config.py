"""Every setting of a run: frozen, typed sections with their documentation under each field.

A recipe (`raymae.recipes`) is a function that returns a whole `Config`; the command line overrides any field by its
path. A section checks itself; what two sections have to agree on is checked in `Config`. Wrong settings are
`ValueError`s that say what would be right.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_share(name: str, value: float) -> None:
    _require(0 <= value < 1, f"{name} = {value} must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The front end: waveform to log-mel. The defaults are the paper's (section 3, with the authors' public code)."""

    sample_rate: int = 32_000
    """Hz; every recording is resampled to it."""
    n_fft: int = 4096
    """Length of the FFT, samples."""
    win_length: int = 3072
    """Length of the symmetric Hann window, samples; zero-padded to n_fft."""
    hop_length: int = 500
    """Samples from frame to frame."""
    n_mels: int = 256
    """Mel bands."""
    f_min: float = 0.0
    """Lower edge of the lowest mel band, Hz."""
    f_max: float | None = None
    """Upper edge of the highest mel band, Hz; the default is half the sample rate."""
    pre_emphasis: float = 0.97
    """a in y[n] = x[n + 1] - a x[n]; 0 switches it off."""
    log_offset: float = 1e-5
    """Added to the mel power before the logarithm."""
    norm_mean: float = -4.5
    """Subtracted from the log-mel."""
    norm_scale: float = 5.0
    """The log-mel is divided by it."""
    clip_seconds: float = 10.0
    """Clips are cut or padded to this length, seconds."""

    def __post_init__(self) -> None:
        _require(self.sample_rate > 0, f"audio.sample_rate = {self.sample_rate} must be positive")
        _require(
            1 <= self.win_length <= self.n_fft,
            f"audio.win_length = {self.win_length} must lie between 1 and audio.n_fft = {self.n_fft}",
        )
        _require(self.n_fft % 2 == 0, f"audio.n_fft = {self.n_fft} must be even")
        _require(self.hop_length >= 1, f"audio.hop_length = {self.hop_length} must be at least 1")
        _require(self.n_mels >= 1, f"audio.n_mels = {self.n_mels} must be at least 1")
        _require(
            0 <= self.f_min < self.f_high <= self.sample_rate / 2,
            f"audio.f_min = {self.f_min} and f_max = {self.f_high} must satisfy "
            f"0 <= f_min < f_max <= sample_rate / 2 = {self.sample_rate / 2}",
        )
        _require_share("audio.pre_emphasis", self.pre_emphasis)
        _require(self.log_offset > 0, f"audio.log_offset = {self.log_offset} must be positive")
        _require(self.norm_scale > 0, f"audio.norm_scale = {self.norm_scale} must be positive")
        _require(
            self.n_samples > self.n_fft,
            f"audio.clip_seconds = {self.clip_seconds} must be longer than n_fft = {self.n_fft} samples",
        )

    @property
    def f_high(self) -> float:
        """f_max with its default filled in, Hz."""
        return self.sample_rate / 2 if self.f_max is None else self.f_max

    @property
    def n_samples(self) -> int:
        """Samples of a whole clip."""
        return round(self.clip_seconds * self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames of a whole clip (centred STFT of what pre-emphasis leaves)."""
        return self.frames(self.n_samples)

    def frames(self, n_samples: int) -> int:
        """Frames of a waveform of `n_samples`; even an empty one has one."""
        return 1 + max(0, n_samples - (self.pre_emphasis > 0)) // self.hop_length

    @property
    def silence(self) -> float:
        """The normalised value of a band without any energy: what padding holds."""
        return (math.log(self.log_offset) - self.norm_mean) / self.norm_scale


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded data set (`raymae.datasets.synthetic`); it checks the pipeline and proves nothing about scenes."""

    clips: int = 640
    """Clips of the labelled cities (train, val and test together)."""
    pool_clips: int = 360
    """Unlabelled clips of other cities, for pre-training only."""
    labelled_share: float = 0.2
    """Share of the training groups whose clips carry labels."""
    seed: int = 0
    """Seed of the sound."""

    def __post_init__(self) -> None:
        _require(self.clips >= 100, f"data.synthetic.clips = {self.clips} must be at least 100")
        _require(self.pool_clips >= 0, f"data.synthetic.pool_clips = {self.pool_clips} must not be negative")
        _require(
            0 < self.labelled_share <= 1,
            f"data.synthetic.labelled_share = {self.labelled_share} must lie in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the clips come from and how their features are stored."""

    dataset: str = "synthetic"
    """A name in raymae.datasets.DATASETS: synthetic, table."""
    tables: tuple[str, ...] = ()
    """CSV or Parquet tables with filename and optional scene_label, city, device, group, split (dataset = table)."""
    pool_tables: tuple[str, ...] = ()
    """Further tables, all of whose clips serve pre-training alone (their labels are ignored)."""
    pool_weights: tuple[float, ...] = ()
    """How often an epoch of pre-training visits each clip of the pool tables, one number per table; default 1."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of the embedded data set."""
    max_bad_share: float = 0.05
    """The job stops when a larger share of the files can't be read; below it they are quarantined and listed."""
    max_clip_silence: float = 1.0
    """A clip of which a larger share is padding is quarantined; 1 keeps all."""
    file_timeout: float = 30.0
    """Seconds after which the decoding of one file is given up."""
    shard_mb: float = 128.0
    """Largest size of a shard of the feature store, MB."""
    shuffle_chunk: int = 8
    """Rows that stay together when an epoch is shuffled: 1 shuffles best, more read fewer pieces."""

    def __post_init__(self) -> None:
        _require_share("data.max_bad_share", self.max_bad_share)
        _require(self.file_timeout > 0, f"data.file_timeout = {self.file_timeout} must be positive")
        _require(self.shard_mb > 0, f"data.shard_mb = {self.shard_mb} must be positive")
        _require(self.shuffle_chunk >= 1, f"data.shuffle_chunk = {self.shuffle_chunk} must be at least 1")
        _require(
            len(self.pool_weights) in (0, len(self.pool_tables)) and all(w > 0 for w in self.pool_weights),
            f"data.pool_weights = {self.pool_weights} must hold one positive number for each of the "
            f"{len(self.pool_tables)} data.pool_tables, or nothing",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder, decoder and masking. The defaults are Audio-MAE's ViT-B (Huang et al. 2022) with the paper's masks."""

    name: str = "mae"
    """A name in raymae.models.MODELS."""
    patch_size: tuple[int, int] = (16, 16)
    """Frames and mel bands of a patch."""
    embed_dim: int = 768
    """Width of the encoder."""
    depth: int = 12
    """Blocks of the encoder."""
    num_heads: int = 12
    """Attention heads of the encoder."""
    mlp_ratio: float = 4.0
    """Width of the MLPs over the width of their block."""
    decoder: Literal["local", "global", "light"] = "local"
    """local: windows of 4 x 4 patches, every second block shifted along time (paper); global: plain; light: narrow."""
    decoder_embed_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 16
    """Blocks of the decoder."""
    decoder_num_heads: int = 16
    """Attention heads of the decoder."""
    mask_strategy: Literal["unstructured", "time", "frequency", "time_frequency"] = "unstructured"
    """Which patches are removed together: single patches, whole time columns, frequency rows, or both."""
    mask_ratio: float = 0.8
    """Share of the patches that is REMOVED in pre-training (all strategies but time_frequency)."""
    time_mask_ratio: float = 0.7
    """Share of time columns removed by time_frequency."""
    freq_mask_ratio: float = 0.3
    """Share of frequency rows removed by time_frequency."""
    norm_target: bool = False
    """Normalise each target patch (Audio-MAE); off: the spectrogram itself is the target (the paper's MSE)."""

    def __post_init__(self) -> None:
        for name in ("mask_ratio", "time_mask_ratio", "freq_mask_ratio"):
            _require_share(f"model.{name}", getattr(self, name))
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}embed_dim"), getattr(self, f"{prefix}num_heads")
            _require(width % heads == 0, f"model.{prefix}embed_dim = {width} must be a multiple of its {heads} heads")
            _require(
                width % 4 == 0, f"model.{prefix}embed_dim = {width} must be a multiple of 4 (2-D sin-cos positions)"
            )
        _require(
            self.patch_size[0] >= 2 and self.patch_size[1] >= 1,
            f"model.patch_size = {self.patch_size} must span at least 2 frames and 1 mel band",
        )
        _require(self.depth >= 1 and self.decoder_depth >= 1, "model.depth and decoder_depth must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentations of log-mel batches in training, each off by default (p = 0 is the identity)."""

    crop_seconds: float | None = None
    """Length of a random crop, seconds; the default is the whole clip."""
    roll_p: float = 0.0
    """Probability of rolling a clip in time by a random number of frames."""
    gain_db: float = 0.0
    """Largest random gain, dB in either direction."""
    colour_p: float = 0.0
    """Probability of a random smooth frequency response (another recording device)."""
    colour_nats: float = 3.0
    """Standard deviation of the response at its knots, nats of power."""
    colour_knots: int = 8
    """Knots of the response from the lowest to the highest band."""
    mixup_p: float = 0.0
    """Probability that the clips of a micro-batch are mixed with one another (fine-tuning only)."""
    mixup_alpha: float = 10.0
    """Mixing weights come from Beta(alpha, alpha)."""
    mixstyle_p: float = 0.0
    """Probability of Freq-MixStyle: band statistics of two clips are mixed."""
    mixstyle_alpha: float = 0.4
    """Its weights come from Beta(alpha, alpha)."""
    freq_mask_param: int = 0
    """SpecAugment: largest number of mel bands in the one stripe that is masked; 0 masks none."""
    time_mask_param: int = 0
    """SpecAugment: largest number of frames in the one stripe that is masked; 0 masks none."""

    def __post_init__(self) -> None:
        for name in ("roll_p", "colour_p", "mixup_p", "mixstyle_p"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name} = {getattr(self, name)} is a probability: 0 to 1")
        for name in ("gain_db", "colour_nats", "freq_mask_param", "time_mask_param"):
            _require(getattr(self, name) >= 0, f"augment.{name} = {getattr(self, name)} must not be negative")
        for name in ("mixup_alpha", "mixstyle_alpha"):
            _require(getattr(self, name) > 0, f"augment.{name} = {getattr(self, name)} must be positive")
        _require(self.colour_knots >= 2, f"augment.colour_knots = {self.colour_knots} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What pre-training and fine-tuning share: length, batches, optimiser, commits."""

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
        _require(self.epochs > 0, f"epochs = {self.epochs} must be positive")
        _require(
            self.micro_batch_size >= 1 and self.global_batch_size % self.micro_batch_size == 0,
            f"global_batch_size = {self.global_batch_size} must be a multiple of "
            f"micro_batch_size = {self.micro_batch_size}",
        )
        _require(
            self.warmup_epochs < self.epochs,
            f"warmup_epochs = {self.warmup_epochs} must be smaller than epochs = {self.epochs}",
        )
        _require(self.commit_minutes > 0, f"commit_minutes = {self.commit_minutes} must be positive")
        _require(self.keep_commits >= 1, f"keep_commits = {self.keep_commits} must be at least 1")
        _require(self.report_steps >= 1, f"report_steps = {self.report_steps} must be at least 1")

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
    """Leave the unlabelled clips of the training split out."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Fine-tuning of the encoder on labelled clips (Audio-MAE's AS-20K recipe by default)."""

    epochs: float = 60
    """Passes over the labelled clips."""
    global_batch_size: int = 32
    """Clips per optimiser step, over all workers."""
    base_lr: float = 1e-3
    """Learning rate per 256 clips."""
    warmup_epochs: float = 4
    """Epochs of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    layer_decay: float = 0.75
    """Each block's learning rate over that of the block above it; the head's factor is 1."""
    head_lr_scale: float = 1.0
    """The head's learning rate over the encoder's."""
    head_epochs: float = 0.0
    """Epochs at the start in which only the head is trained."""
    pool: Literal["mean", "cls", "row_stats"] = "mean"
    """mean: average of the patches; cls: class token; row_stats: mean and deviation of every frequency row."""
    layer: int | None = None
    """Read the encoder after this many blocks (the later ones are dropped); the default reads all."""
    centre: bool = False
    """Remove each clip's mean level of every band from the input (device robustness)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; linear from 0."""
    label_smoothing: float = 0.0
    """Label smoothing."""
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
        for name in ("time_mask_ratio", "freq_mask_ratio", "drop_path", "label_smoothing"):
            _require_share(f"finetune.{name}", getattr(self, name))
        _require(0 < self.layer_decay <= 1, f"finetune.layer_decay = {self.layer_decay} must lie in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Which of the teacher's guesses become labels of the student."""

    confidence_threshold: float | None = 0.9
    """Smallest calibrated probability of an accepted pseudo-label; none accepts by coverage instead."""
    coverage: float | None = None
    """Share of each predicted class's clips that is accepted, surest first (instead of a threshold)."""

    def __post_init__(self) -> None:
        _require(
            (self.confidence_threshold is None) != (self.coverage is None),
            "set one of pseudo_label.confidence_threshold and pseudo_label.coverage, the other to None "
            f"(now {self.confidence_threshold} and {self.coverage})",
        )
        for name in ("confidence_threshold", "coverage"):
            value = getattr(self, name)
            _require(value is None or 0 < value < 1, f"pseudo_label.{name} = {value} must lie in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the final table compares."""

    rivals: tuple[Literal["svm", "svm_robust", "cnn"], ...] = ("svm", "svm_robust", "cnn")
    """Rivals in every table: SVM on log-mel statistics, plain and coloured + centred; a small CNN from scratch."""
    cnn: str = "test_resnet"
    """timm name of the CNN rival; the default is a ResNet of 0.4 M parameters, which suits the seconds it is given."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What the cluster gives to the job; nothing here changes a result."""

    address: str | None = None
    """Ray address; the default is the job's own cluster (RAY_ADDRESS) or a new local one."""
    num_workers: int | None = None
    """Training workers; the default is one per GPU of the cluster, or one without GPUs."""
    use_gpu: bool | None = None
    """Train on GPUs; the default is to when the cluster has some."""
    cpus_per_worker: float = 1
    """CPUs reserved for each training worker."""
    torch_threads: int | None = None
    """Threads of torch in a training worker; the default shares the machine's cores out."""
    data_workers: int | None = None
    """Most workers that decode audio; the default is one per CPU of the cluster."""
    max_failures: int = 3
    """How often a training worker group is started again after a failure."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    uri: str | None = None
    """Tracking URI; the default is a SQLite file under the storage."""
    experiment: str = "raymae"
    """Experiment."""
    registered_model: str = "raymae-scene-classifier"
    """Name in the model registry."""
    alias: str = "candidate"
    """Alias that the new version gets."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What jobs/predict.py labels."""

    inputs: tuple[str, ...] = ()
    """Audio files, folders of them, or tables with a filename column."""
    output: str | None = None
    """CSV or Parquet file to write."""
    model: str | None = None
    """Folder of a classifier, or a models:/ URI; the default is the final model of the recipe's own pipeline."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    recipe: str = ""
    """Name of the recipe that these settings came from."""
    seed: int = 0
    """Seed of weights, order, masks and augmentation."""
    storage: str = "raymae-storage"
    """Folder or URL (s3://, gs://, …) of everything that is written."""
    json: str | None = None
    """Write the job's result to this JSON file."""
    dry_run: bool = False
    """Print the plan and stop."""
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
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    """Pseudo-labels."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    compute: ComputeConfig = ComputeConfig()
    """Resources."""
    tracking: TrackingConfig = TrackingConfig()
    """Tracking and registry."""
    predict: PredictConfig = PredictConfig()
    """Prediction."""

    def __post_init__(self) -> None:
        for name in ("pretrain", "finetune"):
            crop = getattr(self, name).augment.crop_seconds
            _require(
                crop is None or 0 < crop <= self.audio.clip_seconds,
                f"{name}.augment.crop_seconds = {crop} must not exceed audio.clip_seconds = {self.audio.clip_seconds}",
            )
        _require(
            self.model.patch_size[1] <= self.audio.n_mels,
            f"model.patch_size = {self.model.patch_size} is wider than audio.n_mels = {self.audio.n_mels}",
        )
        layer = self.finetune.layer
        _require(
            layer is None or 1 <= layer <= self.model.depth,
            f"finetune.layer = {layer} must lie between 1 and model.depth = {self.model.depth}",
        )


def redact(text: str) -> str:
    """`text` with the credentials of every URI in it replaced by `***`."""
    # user:password@, where a password may hold @ and /; then a bare token@
    text = re.sub(r"(\w[\w+.-]*://)[^\s/@:]*:\S*@", r"\1***@", text)
    text = re.sub(r"(\w[\w+.-]*://)[^/@\s]+@", r"\1***@", text)
    return re.sub(r"(?i)([?&](?:\w*(?:secret|token|key|password|signature)\w*)=)[^&\s]+", r"\1***", text)


def to_dict(value: Any, *, secret: bool = False) -> Any:
    """A section as plain dicts, lists and scalars; credentials are redacted unless `secret`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: to_dict(item, secret=secret) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item, secret=secret) for item in value]
    return redact(value) if isinstance(value, str) and not secret else value


def from_dict(section: type, values: dict[str, Any], path: str = "") -> Any:
    """The section that `to_dict` wrote; raises ValueError for unknown keys."""
    known = {item.name: item for item in fields(section)}
    unknown = sorted(set(values) - set(known))
    _require(not unknown, f"unknown setting {path}{unknown[0] if unknown else ''}; valid here: {', '.join(known)}")
    default = section()
    arguments = {}
    for name, value in values.items():
        inner = getattr(default, name)
        if is_dataclass(inner):
            value = from_dict(type(inner), value, f"{path}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return section(**arguments)
