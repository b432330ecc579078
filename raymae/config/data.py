"""Settings of data sets, their splits and the feature store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from raymae.config.values import redact, require, require_choice, require_share

COLUMNS = ("filename", "city", "device", "group", "split")
"""Columns of a table other than the labels."""

MAX_FFT, MAX_MELS, MAX_CLIP_SAMPLES, MAX_VALUES = 2**16, 2**11, 2**27, 2**28
"""Largest FFT length, mel bands, samples and values (frames x bands) of a clip: settings also come with models from
elsewhere."""

DESCRIBE_TABLES = (
    "label_column",
    "label_separator",
    "merge_labels",
    "audio_root",
    "filename_column",
    "filename_suffix",
    "fold_column",
)
"""Settings that say how data.tables are read."""

OWN = ("synthetic", "table")
"""Data sets without a published folder."""
FOLDED = {"esc50": 5, "esc10": 5, "urbansound8k": 10}
"""Published data sets with folds and their numbers of folds, which are named 1, 2, …"""
SUBSETS = (5, 10, 25, 50, 100)
"""Percent of TAU 2022 Mobile's training clips in the training subsets of DCASE 2024 task 1."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded data set (`raymae.datasets.synthetic`); it checks the pipeline and proves nothing about scenes."""

    clips: int = 640
    """Clips of the labelled cities (train, val and test together)."""
    pool_clips: int = 360
    """Unlabelled clips of other cities, for pre-training only."""
    labelled_share: float = 0.2
    """Share of the training groups whose clips are labelled."""
    seed: int = 0
    """Seed of the generated audio."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"data.synthetic.seed = {self.seed} must not be negative")
        require(self.clips >= 100, f"data.synthetic.clips = {self.clips} must be at least 100")
        require(self.pool_clips >= 0, f"data.synthetic.pool_clips = {self.pool_clips} must not be negative")
        require(
            0 < self.labelled_share <= 1,
            f"data.synthetic.labelled_share = {self.labelled_share} must lie in (0, 1]",
        )


SplitKind = Literal["table", "random", "session", "visit", "city_day", "city", "device"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the clips are divided into training and evaluation (`raymae.datasets.splits.assign`)."""

    kind: SplitKind = "table"
    """What stays on one side of the split. table: as the table or loader says (TAU's official fold); session: a group;
    visit: sessions of a city no more than 30 minutes apart; city_day: a day in a city; city: the cities of held_out are
    test; device: the devices of held_out are test_unseen, on groups that are not in training, where the other devices
    are test_seen. random separates clips of one recording, so it leaks: use it only to repeat published protocols."""
    held_out: tuple[str, ...] = ()
    """Cities (kind = city) or devices (kind = device) that are kept out of training."""
    test_share: float = 0.2
    """Share of the labelled clips in test (kinds random, session, visit, city_day and device)."""
    val_share: float | None = None
    """Share of the labelled clips in val, drawn by group from the training side; None: 0.1, but with kind = table or a
    file what these say."""
    labelled_share: float | None = None
    """Share of the labelled training groups whose labels are kept, for curves over the number of labels; every class
    keeps a group, and the groups of a smaller share are among those of a larger one. None: all."""
    seed: int = 0
    """Seed of the random draws."""
    transductive: bool = False
    """Use unlabelled siblings of val and test clips, and pool clips of their groups, in pre-training (split pool); off:
    they are left out."""
    file: str | None = None
    """An existing split, in place of kind: the folder of its split.json and split.parquet, or either file."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"data.split.seed = {self.seed} must not be negative")
        require_choice("data.split.kind", self.kind, get_args(SplitKind))
        for name, lowest, highest in (
            ("test_share", "(0", "1)"),
            ("val_share", "[0", "1)"),
            ("labelled_share", "(0", "1]"),
        ):
            value = getattr(self, name)
            inside = (
                value is None or 0 < value < 1 or (value == 0 and lowest == "[0") or (value == 1 and highest == "1]")
            )
            require(inside, f"data.split.{name} = {value} must lie in {lowest}, {highest}")
        require(
            self.test_share + (self.val_share or 0) < 1,
            f"data.split.test_share = {self.test_share} and val_share = {self.val_share} leave nothing for training",
        )
        if self.kind in ("city", "device"):
            wanted = "cities" if self.kind == "city" else "devices"
            require(
                bool(self.held_out), f"data.split.kind = {self.kind} needs data.split.held_out: {wanted} to test on"
            )
        for name in self._unused():
            default = getattr(type(self), name)
            other = "file, which decides it" if self.file else f"kind = {self.kind}"
            require(
                getattr(self, name) == default,
                f"data.split.{name} = {getattr(self, name)!r} has no effect with data.split.{other}: leave it at "
                f"{default!r}",
            )

    def _unused(self) -> list[str]:
        """Fields that have no effect on this kind of split."""
        if self.file:
            unused = ["kind", "held_out", "test_share", "val_share", "transductive"]
            return unused if self.labelled_share else [*unused, "seed"]
        unused = [] if self.kind in ("city", "device") else ["held_out"]
        unused += ["test_share"] if self.kind in ("table", "city") else []
        unused += ["transductive"] if self.kind == "random" else []
        drawn = self.labelled_share or self.val_share or (self.kind != "table" and self.val_share is None)
        return unused if drawn or self.kind not in ("table", "city") else [*unused, "seed"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the clips come from and how their features are stored."""

    dataset: str = "synthetic"
    """Name of the data set, one of raymae.datasets.clips.DATASETS: synthetic, table, cas2023, cas2023_eval, tau2019,
    tau2020_mobile, tau2022_mobile, dcase2024_task1, dcase2025_task1, audioset, esc50, esc10, urbansound8k, fsd50k,
    folders (a folder per class)."""
    root: str | None = None
    """Folder or URL of a published data set, as it is distributed (every dataset but synthetic and table)."""
    subset: int | None = None
    """Percent of the training clips to use, 5, 10, 25, 50 or 100 (dataset = dcase2024_task1); None: 100."""
    tables: tuple[str, ...] = ()
    """CSV or Parquet tables with the column filename and optional scene_label, city, device, group and split
    (dataset = table). A folder or tar of recordings is read without labels, for pre-training.

    A filename may be tar://member::shard.tar; a Parquet table may hold the encoded files themselves, in a column audio.
    A data set of Hugging Face's hub is named by hf://datasets/OWNER/NAME[@REVISION][/FOLDER], or by a local folder with
    the same Parquet files; files named train…, validation… and test… are those splits.
    """
    pool_tables: tuple[str, ...] = ()
    """Further tables, folders or tars whose clips are used in pre-training alone; their labels are ignored."""
    pool_weights: tuple[float, ...] = ()
    """How often an epoch of pre-training visits each clip of the pool_tables, then of the pool_datasets: one number for
    each of them; empty: 1 for all."""
    pool_datasets: tuple[str, ...] = ()
    """Published data sets for pre-training, as name:folder (tau2020_mobile:/data/tau), without their val and test."""
    label_column: str = "scene_label"
    """Column of the tables that holds the labels (dataset = table)."""
    label_separator: str = ";"
    """Separator of a multi-label clip's classes in that column (dataset = table)."""
    merge_labels: bool = False
    """Give labels that are equal up to case, blanks or Unicode form the most frequent of their spellings, the first one
    on ties (dataset = table); off: they are an error."""
    audio_root: str | None = None
    """Folder or URL below which the filenames of `tables` are looked up, absolute ones too; None: each table's own
    folder."""
    filename_column: str = "filename"
    """Column of `tables` that holds the filenames."""
    filename_suffix: str = ""
    """Text that is appended to every filename of `tables`, such as .wav where they hold bare ids."""
    fold_column: str | None = None
    """Column of `tables` that holds each clip's fold, in place of a column split: the clips of test_fold are split
    test, the others train, of which data.split.val_share draws a val."""
    test_fold: str | None = None
    """The fold that is split test, of tables with a fold_column and of esc50, esc10 and urbansound8k, where None is the
    last one; for every fold in turn see `folds`."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the folders that the settings name (tables, pools, inputs of predict);
    those within them are followed anyway."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Settings of the embedded data set."""
    check: bool = False
    """Print the clips by split, class, city and device and what can't be found, then stop; exit status 1 if something
    is wrong."""
    split: SplitConfig = SplitConfig()
    """How the clips are divided into training and evaluation."""
    max_bad_share: float = 0.05
    """Largest share of files that may be unreadable: above it the job stops, else they are quarantined and listed."""
    file_timeout: float = 30.0
    """Seconds of computing after which decoding a file is given up, and of silence after which its storage is. What was
    given up because of a silent storage is read again by the same command; what took too long, with a higher limit."""
    shard_mb: float = 128.0
    """Largest size of a shard of the feature store, MB."""
    store: Literal["parquet", "none"] = "parquet"
    """parquet: store the features; none: decode the audio again in every epoch, for corpora too large to store."""
    compression: Literal["none", "zstd", "lz4"] = "none"
    """Compression of new shards; existing shards stay as they are and are read alike (the manifest counts each kind).
    On ESC-10 at the default front end, one core, from memory, checksums verified: none reads 3.9 GB/s, lz4 saves 11 %
    and reads 3.6 GB/s, zstd saves 24 % and reads 1.0 GB/s."""
    verify: bool = False
    """Check every byte of existing shards, and compute damaged ones again. Off: `prepare` checks their sizes and
    footers, and training the checksum of every page that it reads."""
    shuffle_chunk: int = 8
    """Neighbouring clips of the store that stay together when an epoch of pre-training is shuffled, within windows of
    128 clips. Stages with labels always shuffle fully.

    1 is a full permutation, as of a DataLoader with shuffle=True; it reads a store in memory at half the speed, one on
    local disk at three quarters. With 8, if neighbours are from one recording, the class shares of batches vary as if a
    batch of 64 held 47 clips drawn at random (in mixing groups of 8), 36 (of 16) or 15 (of 64); see
    raymae/training/batches/order.py.
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
            f"data.root = {self.root!r} has no effect with data.dataset = {self.dataset}: name the data set there",
        )
        require(
            self.subset is None or self.dataset == "dcase2024_task1",
            f"data.subset = {self.subset} has no effect with data.dataset = {self.dataset}: it chooses among the "
            "training subsets of dcase2024_task1",
        )
        require(
            self.subset in (None, *SUBSETS),
            f"data.subset = {self.subset} must be one of {', '.join(map(str, SUBSETS))}",
        )
        require(
            not self.tables or self.dataset == "table",
            f"data.tables = {', '.join(map(redact, self.tables))} has no effect with data.dataset = {self.dataset}: "
            "your own tables need data.dataset = table (more clips for pre-training go to data.pool_tables)",
        )
        self._check_tables()
        self._check_folds()
        for pool in self.pool_datasets:
            name, colon, folder = pool.partition(":")
            require(
                bool(name and colon and folder) and name not in OWN,
                f"data.pool_datasets: {pool!r} must be the name of a published data set and its folder, as in "
                "tau2020_mobile:/data/tau (tables and folders go to data.pool_tables)",
            )

    def _check_tables(self) -> None:
        """Check the settings that describe `tables`."""
        for name in DESCRIBE_TABLES:
            value, default = getattr(self, name), getattr(type(self), name)
            blank = isinstance(value, str) and not value.strip() and value != default
            require(not blank, f"data.{name} = {value!r} must not be blank")
            shown = repr(redact(value) if isinstance(value, str) else value)
            require(
                value == default or self.dataset == "table",
                f"data.{name} = {shown} has no effect with data.dataset = {self.dataset}: it describes data.tables",
            )
        require(
            self.label_column not in COLUMNS,
            f"data.label_column = {self.label_column!r} must be another column than {', '.join(COLUMNS)}",
        )
        others = (self.label_column, *COLUMNS[1:])
        require(
            self.filename_column not in others,
            f"data.filename_column = {self.filename_column!r} must be another column than {', '.join(others)}",
        )

    def _check_folds(self) -> None:
        """Check `fold_column` and `test_fold` against each other and against the split."""
        if self.fold_column is None:
            require(
                self.test_fold is None or self.dataset in (*FOLDED, "table"),
                f"data.test_fold = {self.test_fold!r} has no effect with data.dataset = {self.dataset}: "
                f"{', '.join(FOLDED)} have folds, and tables with data.fold_column",
            )
            require(
                self.test_fold is None or self.dataset in FOLDED,
                f"data.test_fold = {self.test_fold!r} needs data.fold_column: the column of data.tables that holds the "
                f"folds (data.dataset = {', '.join(FOLDED)} have their own)",
            )
            return
        others = (self.filename_column, self.label_column, "city", "device", "group")
        require(
            self.fold_column not in others,
            f"data.fold_column = {self.fold_column!r} must be another column than {', '.join(others)}",
        )
        file = self.split.file
        given = f"data.split.file = {redact(file)}" if file else f"data.split.kind = {self.split.kind}"
        require(
            self.split.kind == "table" and file is None,
            f"data.fold_column = {self.fold_column!r} and {given} both decide the split: leave one of them out",
        )
