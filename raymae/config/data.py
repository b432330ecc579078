"""The front end and the clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.split import SplitConfig
from raymae.config.values import redact, require, require_choice, require_share

Framing = Literal["centred", "kaldi"]
Window = Literal["symmetric", "periodic"]
MelScale = Literal["kaldi", "slaney"]
LogFloor = Literal["add", "clamp"]

COLUMNS = ("filename", "city", "device", "group", "split")
"""Columns of a table that don't hold labels."""

MAX_FFT, MAX_MELS, MAX_CLIP_SAMPLES, MAX_VALUES = 2**16, 2**11, 2**27, 2**28
"""Largest FFT, bands, samples and values (frames x bands) of a clip: foreign models bring settings, too."""

OWN = ("synthetic", "table")
"""Data sets that have no folder as published."""


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The front end: waveform to log-mel. The defaults are the paper's (section 3, with the authors' public code).

    `FRONT_ENDS` holds others whole.
    """

    sample_rate: int = 32_000
    """Hz; every recording is resampled to it."""
    n_fft: int = 4096
    """Length of the FFT, samples."""
    win_length: int = 3072
    """Length of the Hann window, samples; zero-padded to n_fft."""
    hop_length: int = 500
    """Samples from frame to frame."""
    framing: Framing = "centred"
    """centred: frame i lies around sample i x hop_length, beyond its ends the waveform is reflected; kaldi: frames lie
    wholly inside (snip_edges) and each is freed of its mean, then pre-emphasised by itself."""
    window: Window = "symmetric"
    """symmetric: the Hann window's two ends are zero; periodic: only the first is (librosa's, torch's default)."""
    n_mels: int = 256
    """Mel bands."""
    f_min: float = 0.0
    """Lower edge of the lowest mel band, Hz."""
    f_max: float | None = None
    """Upper edge of the highest mel band, Hz; the default is half the sample rate."""
    mel_scale: MelScale = "kaldi"
    """kaldi: triangles of peak 1 on 1127 ln(1 + f / 700); slaney: triangles in Hz of area 1, spaced evenly up to 1 kHz
    and by equal ratios above it (librosa's default)."""
    pre_emphasis: float = 0.97
    """a in y[n] = x[n + 1] - a x[n], or with Kaldi's framing in y[n] = x[n] - a x[n - 1] and y[0] = (1 - a) x[0] of
    each frame; 0 switches it off."""
    log_offset: float = 1e-5
    """Keeps the logarithm of the mel power finite, as log_floor says."""
    log_floor: LogFloor = "add"
    """add: log(power + log_offset); clamp: log(max(power, log_offset))."""
    norm_mean: float = -4.5
    """Subtracted from the log-mel."""
    norm_scale: float = 5.0
    """The log-mel is divided by it."""
    clip_seconds: float = 10.0
    """Clips are cut or padded to this length, seconds."""

    def __post_init__(self) -> None:
        require(self.sample_rate > 0, f"audio.sample_rate = {self.sample_rate} must be positive")
        require_choice("audio.framing", self.framing, get_args(Framing))
        require_choice("audio.window", self.window, get_args(Window))
        require_choice("audio.mel_scale", self.mel_scale, get_args(MelScale))
        require_choice("audio.log_floor", self.log_floor, get_args(LogFloor))
        require(  # a symmetric Hann window of 2 samples is all zero
            3 <= self.win_length <= self.n_fft,
            f"audio.win_length = {self.win_length} must lie between 3 and audio.n_fft = {self.n_fft}",
        )
        require(self.n_fft <= MAX_FFT, f"audio.n_fft = {self.n_fft} must not exceed {MAX_FFT}")
        require(self.n_fft % 2 == 0, f"audio.n_fft = {self.n_fft} must be even")
        require(self.hop_length >= 1, f"audio.hop_length = {self.hop_length} must be at least 1")
        require(1 <= self.n_mels <= MAX_MELS, f"audio.n_mels = {self.n_mels} must lie between 1 and {MAX_MELS}")
        require(
            0 <= self.f_min < self.f_high <= self.sample_rate / 2,
            f"audio.f_min = {self.f_min} and f_max = {self.f_high} must satisfy "
            f"0 <= f_min < f_max <= sample_rate / 2 = {self.sample_rate / 2}",
        )
        require_share("audio.pre_emphasis", self.pre_emphasis)
        require(  # below, float32 rounds it to 0 or nearly so
            1e-37 <= self.log_offset < math.inf,
            f"audio.log_offset = {self.log_offset} must be finite and at least 1e-37",
        )
        require(math.isfinite(self.norm_mean), f"audio.norm_mean = {self.norm_mean} must be finite")
        require(0 < self.norm_scale < math.inf, f"audio.norm_scale = {self.norm_scale} must be positive and finite")
        require(
            self.clip_seconds * self.sample_rate <= MAX_CLIP_SAMPLES and self.n_samples > self.n_fft,
            f"audio.clip_seconds = {self.clip_seconds} must be longer than n_fft = {self.n_fft} samples and not longer "
            f"than {MAX_CLIP_SAMPLES}",
        )
        require(
            self.n_frames * self.n_mels <= MAX_VALUES,
            f"audio.hop_length = {self.hop_length} and n_mels = {self.n_mels} give clips more than {MAX_VALUES} values",
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
        """Frames of a whole clip."""
        return self.frames(self.n_samples)

    def frames_of(self, seconds: float | None) -> int:
        """Frames of a part of a clip, at most all of them; None is the whole clip.

        Kaldi's framing loses up to a window at the end: a part as long as the clip has no more frames than it.
        """
        return (
            self.n_frames
            if seconds is None
            else min(self.n_frames, round(seconds * self.sample_rate / self.hop_length))
        )

    def frames(self, n_samples: int) -> int:
        """Frames of a waveform of `n_samples`; even an empty one has one.

        Centred: one per hop of what pre-emphasis leaves, and one. Kaldi: as many as fit in.
        """
        if self.framing == "kaldi":
            return 1 + max(0, n_samples - self.win_length) // self.hop_length
        return 1 + max(0, n_samples - (self.pre_emphasis > 0)) // self.hop_length

    @property
    def silence(self) -> float:
        """The normalised value of a band without any energy: what padding holds."""
        return (math.log(self.log_offset) - self.norm_mean) / self.norm_scale


FRONT_ENDS = {
    # Cai & Li, section 3: 10 s are 640 frames.
    "paper": AudioConfig(),
    # torchaudio.compliance.kaldi.fbank as Audio-MAE's dataset.py calls it (htk_compat, hanning, 128 bands, no dither,
    # 10 ms), with its AudioSet mean and twice its standard deviation. The mean that it takes off the whole recording
    # first is part of each frame's. Floor: the epsilon of float32. Audio-MAE cuts or pads to 1,024 frames; 10.255 s
    # have as many, AudioSet's 10 s have 998.
    "audiomae": AudioConfig(
        sample_rate=16_000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        framing="kaldi",
        n_mels=128,
        f_min=20.0,
        log_offset=2.0**-23,
        log_floor="clamp",
        norm_mean=-4.2677393,
        norm_scale=2 * 4.5689974,
        clip_seconds=10.255,
    ),
    # The 64 bands of the CAS 2023 challenge's baseline: 40 ms windows, 20 ms apart. It takes decibels of a magnitude, a
    # known defect: this is the natural logarithm of the power. The offset lies 6 dB above the rounding noise of 16 bit
    # samples (2.4e-9 in each band); mean and scale are mean and deviation over 100 clips of ESC-10, rounded.
    "cas_baseline": AudioConfig(
        sample_rate=44_100,
        n_fft=2048,
        win_length=1764,
        hop_length=882,
        window="periodic",
        n_mels=64,
        f_min=10.0,
        f_max=22_050.0,
        mel_scale="slaney",
        pre_emphasis=0.0,
        log_offset=1e-8,
        norm_mean=-6.5,
        norm_scale=6.0,
    ),
}
"""Whole front ends by name; a recipe takes one, or `dataclasses.replace`s some of its fields."""


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
        require(self.clips >= 100, f"data.synthetic.clips = {self.clips} must be at least 100")
        require(self.pool_clips >= 0, f"data.synthetic.pool_clips = {self.pool_clips} must not be negative")
        require(
            0 < self.labelled_share <= 1,
            f"data.synthetic.labelled_share = {self.labelled_share} must lie in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the clips come from and how their features are stored."""

    dataset: str = "synthetic"
    """A name in raymae.datasets.DATASETS: synthetic, table, cas2023, cas2023_eval, tau2019, tau2020_mobile,
    tau2022_mobile, audioset."""
    root: str | None = None
    """Folder or URL of a published data set, as it is distributed (every dataset but synthetic and table)."""
    tables: tuple[str, ...] = ()
    """CSV or Parquet tables with filename and optional scene_label, city, device, group, split (dataset = table).

    A filename may be tar://member::shard.tar; a Parquet table may hold the encoded files themselves, in a column audio.
    """
    pool_tables: tuple[str, ...] = ()
    """Further tables, all of whose clips serve pre-training alone (their labels are ignored); also folders and tars."""
    pool_weights: tuple[float, ...] = ()
    """How often an epoch of pre-training visits each clip of the pool tables, then of the pool datasets: one number for
    each of them; default 1."""
    pool_datasets: tuple[str, ...] = ()
    """Published data sets for pre-training, as name:folder (tau2020_mobile:/data/tau): what is no val or test there."""
    label_column: str = "scene_label"
    """Column of the tables that holds the labels (dataset = table)."""
    label_separator: str = ";"
    """What stands between the classes of a clip in that column (dataset = table)."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of the embedded data set."""
    check: bool = False
    """Print what the data set holds by split, class, city and device, and what of it can't be found, and stop; with
    exit status 1 where something is wrong."""
    split: SplitConfig = SplitConfig()
    """How the clips are shared out between training and evaluation."""
    max_bad_share: float = 0.05
    """The job stops when a larger share of the files can't be read; below it they are quarantined and listed."""
    file_timeout: float = 30.0
    """Seconds after which the decoding of one file is given up; the same for a storage that answers nothing."""
    shard_mb: float = 128.0
    """Largest size of a shard of the feature store, MB."""
    store: Literal["parquet", "none"] = "parquet"
    """none keeps no features: every epoch decodes the audio again, for corpora too large to keep."""
    compression: Literal["none", "zstd", "lz4"] = "none"
    """How new shards are stored; all are read alike, and those that stand are kept as they are (the manifest counts
    them). On ESC-10 at the default front end, one core, from memory, checksums verified: none reads 3.9 GB/s, lz4
    saves 11 % and reads 3.6 GB/s, zstd saves 24 % and reads 1.0 GB/s."""
    verify: bool = False
    """Check every byte of the shards that stand, and compute the damaged ones again. Without it `prepare` looks at
    their sizes and footers, and training at the checksum of every page that it reads."""
    shuffle_chunk: int = 8
    """Neighbours in the store that stay together when an epoch is shuffled, within windows of 128 clips.

    1 is a full permutation, as of a DataLoader with shuffle=True, and reads a store in memory at half the speed, one on
    local disk at three quarters. With 8, and neighbours from one recording, the class shares of batches vary as if a
    batch of 64 held 15 clips drawn at random (one micro-batch of 64) or 36 (four of 16); see raymae/order.py.
    """

    def __post_init__(self) -> None:
        require_choice("data.store", self.store, ("parquet", "none"))
        require_choice("data.compression", self.compression, ("none", "zstd", "lz4"))
        require_share("data.max_bad_share", self.max_bad_share)
        require(self.file_timeout > 0, f"data.file_timeout = {self.file_timeout} must be positive")
        require(self.shard_mb > 0, f"data.shard_mb = {self.shard_mb} must be positive")
        require(self.shuffle_chunk >= 1, f"data.shuffle_chunk = {self.shuffle_chunk} must be at least 1")
        pools = len(self.pool_tables) + len(self.pool_datasets)
        require(
            len(self.pool_weights) in (0, pools) and all(w > 0 for w in self.pool_weights),
            f"data.pool_weights = {self.pool_weights} must hold one positive number for each of the "
            f"{len(self.pool_tables)} data.pool_tables and {len(self.pool_datasets)} data.pool_datasets, or nothing",
        )
        require(
            self.root is None or self.dataset not in OWN,
            f"data.root = {self.root!r} is of no use to data.dataset = {self.dataset}: name the data set there",
        )
        require(
            not self.tables or self.dataset == "table",
            f"data.tables = {', '.join(map(redact, self.tables))} is of no use to data.dataset = {self.dataset}: "
            "tables of one's own need data.dataset = table (more clips for pre-training are data.pool_tables)",
        )
        for name, value, default in (
            ("label_column", self.label_column, "scene_label"),
            ("label_separator", self.label_separator, ";"),
        ):
            require(value.strip() != "", f"data.{name} = {value!r} must not be blank")
            require(
                value == default or self.dataset == "table",
                f"data.{name} = {value!r} is of no use to data.dataset = {self.dataset}: it is about data.tables",
            )
        require(
            self.label_column not in COLUMNS,
            f"data.label_column = {self.label_column!r} must be another column than {', '.join(COLUMNS)}",
        )
        for pool in self.pool_datasets:
            name, colon, folder = pool.partition(":")
            require(
                bool(name and colon and folder) and name not in OWN,
                f"data.pool_datasets: {pool!r} must be the name of a published data set and its folder, as in "
                "tau2020_mobile:/data/tau (tables and folders go to data.pool_tables)",
            )
