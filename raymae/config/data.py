"""The front end and the clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from raymae.config.values import require, require_share


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
        require(self.sample_rate > 0, f"audio.sample_rate = {self.sample_rate} must be positive")
        require(
            1 <= self.win_length <= self.n_fft,
            f"audio.win_length = {self.win_length} must lie between 1 and audio.n_fft = {self.n_fft}",
        )
        require(self.n_fft % 2 == 0, f"audio.n_fft = {self.n_fft} must be even")
        require(self.hop_length >= 1, f"audio.hop_length = {self.hop_length} must be at least 1")
        require(self.n_mels >= 1, f"audio.n_mels = {self.n_mels} must be at least 1")
        require(
            0 <= self.f_min < self.f_high <= self.sample_rate / 2,
            f"audio.f_min = {self.f_min} and f_max = {self.f_high} must satisfy "
            f"0 <= f_min < f_max <= sample_rate / 2 = {self.sample_rate / 2}",
        )
        require_share("audio.pre_emphasis", self.pre_emphasis)
        require(self.log_offset > 0, f"audio.log_offset = {self.log_offset} must be positive")
        require(self.norm_scale > 0, f"audio.norm_scale = {self.norm_scale} must be positive")
        require(
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
    """A name in raymae.datasets.DATASETS: synthetic, table."""
    tables: tuple[str, ...] = ()
    """CSV or Parquet tables with filename and optional scene_label, city, device, group, split (dataset = table).

    A filename may be tar://member::shard.tar; a Parquet table may hold the encoded files themselves, in a column audio.
    """
    pool_tables: tuple[str, ...] = ()
    """Further tables, all of whose clips serve pre-training alone (their labels are ignored); also folders and tars."""
    pool_weights: tuple[float, ...] = ()
    """How often an epoch of pre-training visits each clip of the pool tables, one number per table; default 1."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of the embedded data set."""
    max_bad_share: float = 0.05
    """The job stops when a larger share of the files can't be read; below it they are quarantined and listed."""
    file_timeout: float = 30.0
    """Seconds after which the decoding of one file is given up."""
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
        require_share("data.max_bad_share", self.max_bad_share)
        require(self.file_timeout > 0, f"data.file_timeout = {self.file_timeout} must be positive")
        require(self.shard_mb > 0, f"data.shard_mb = {self.shard_mb} must be positive")
        require(self.shuffle_chunk >= 1, f"data.shuffle_chunk = {self.shuffle_chunk} must be at least 1")
        require(
            len(self.pool_weights) in (0, len(self.pool_tables)) and all(w > 0 for w in self.pool_weights),
            f"data.pool_weights = {self.pool_weights} must hold one positive number for each of the "
            f"{len(self.pool_tables)} data.pool_tables, or nothing",
        )
