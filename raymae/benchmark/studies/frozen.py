"""`frozen`: what probes find in a frozen encoder on one's own tables, against random weights and log-mel statistics."""

from __future__ import annotations

import statistics as stats
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymae.audio.clip_reader import ClipReader
from raymae.benchmark.harness.result import Result
from raymae.config import AudioConfig, DataConfig
from raymae.datasets.clips import load
from raymae.datasets.rows import Rows, class_names, find_rows
from raymae.features.store import FeatureStore
from raymae.features.write import write_store
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.inference.embedder import Embedder

BATCH = 64
STATISTICS = "log-mel statistics"


def tables_store(folder: Folder, audio: AudioConfig, tables: Sequence[str], pools: Sequence[str] = ()) -> FeatureStore:
    """The feature store of a user's tables, made in this process."""
    data = DataConfig(dataset="table", tables=tuple(tables), pool_tables=tuple(pools))
    clips = load(data, None)
    return write_store(folder, clips, audio, ClipReader(audio, data.file_timeout), data.shard_mb)


@dataclass(frozen=True)
class Labelled:
    """The labelled clips of one table: those of split train, and those of its test splits."""

    name: str
    store: FeatureStore

    @cached_property
    def splits(self) -> dict[str, Rows]:
        """Labelled rows by split: train, and all that begin with test."""
        clips = self.store.clips
        names = [name for name in pc.unique(clips["split"]).sort().to_pylist() if name.startswith(("train", "test"))]
        return {
            name: find_rows(pc.and_(pc.equal(clips["split"], name), pc.is_valid(clips["scene_label"])))
            for name in names
        }

    def labels(self, rows: Rows) -> NDArray[np.int64]:
        """Class numbers; ValueError for a class of which there is no training clip."""
        classes = class_names(self.store.clips)
        labels = self.store.clips["scene_label"].take(rows).to_pylist()
        for label in labels:
            if label not in classes:
                raise ValueError(f"{self.name}: no clip of split train has the scene_label {label!r}, a test split has")
        return np.array([classes.index(label) for label in labels], np.int64)

    def embeddings(self, embedder: Embedder, rows: Rows, copies: int = 0, seed: int = 0) -> NDArray[np.float32]:
        """Embeddings ((1 + copies) n, E): of the clips, then of copies through devices with random smooth responses.

        Each is that of the clip and that of the clip without its mean level in every band, side by side.
        """
        found = []
        for start in range(0, len(rows), BATCH):
            log_mel, frames = self.store.read(rows[start : start + BATCH])
            views = [log_mel.astype(np.float32)]
            views += [coloured(views[0], frames, embedder.audio, (seed, start, copy)) for copy in range(copies)]
            found.append([with_centred(embedder, view, frames) for view in views])
        return np.concatenate([np.concatenate(part) for part in zip(*found, strict=True)])


def with_centred(embedder: Embedder, log_mel: NDArray[np.float32], frames: NDArray[np.integer]) -> NDArray[np.float32]:
    """Embeddings (B, 2 E) of log-mels (B, T, F) as they are and centred (`raymae.models.classifier.subtract_band_mean`).

    What a device changes is in the first half alone. Chosen on classes of the pool, where it brings 1 to 7 points
    through devices that the probe didn't learn from.
    """
    import torch

    from raymae.models.classifier import subtract_band_mean

    without = subtract_band_mean(torch.from_numpy(log_mel), torch.from_numpy(frames)).numpy()
    return np.concatenate([embedder.clips(one, frames) for one in (log_mel, without)], axis=1)


def coloured(
    log_mel: NDArray[np.float32], frames: NDArray[np.integer], audio: AudioConfig, keys: tuple[int, ...]
) -> NDArray[np.float32]:
    """Log-mels (B, T, F) as `augment.colour` makes them of every clip, drawn by `keys`."""
    import torch

    from raymae.config import AugmentConfig
    from raymae.features.augment import random_eq
    from raymae.training.batches.order import mix

    generator = torch.Generator().manual_seed(mix(*keys) >> 1)
    config = AugmentConfig(eq_p=1.0)
    found, _ = random_eq(torch.from_numpy(log_mel), torch.from_numpy(frames).long(), config, audio, generator)
    return np.asarray(found.numpy())


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A linear probe on frozen embeddings of labelled clips, for every table by itself.

    Each probe learns from the labelled clips of split train and is scored on the table's test splits: macro accuracy,
    mean and standard deviation over the tables. The same probe reads the encoder with random weights (of other seeds
    for every table) and log-mel statistics; the baselines `svm` and `svm_robust` read these, too. All are read as they
    are and centred, side by side.

    `--json` keys: `scores`, features → split → macro accuracy by table; `tables`; `model`; `layers`.
    """

    model: str
    """Folder of a pre-training or of a classifier."""
    tables: tuple[str, ...]
    """Tables with labels, a split train and splits that begin with test; each is a run of its own."""
    layers: tuple[int, ...] = ()
    """Layers that are averaged; the default is the last."""
    copies: int = 0
    """Copies of each labelled clip through devices with random smooth responses, for the probe to learn from."""
    threads: int | None = None
    """Threads of torch."""
    json: str | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> Result:
        """Measure."""
        import torch

        from raymae.inference.embedder import read_embedder

        if self.threads:
            torch.set_num_threads(self.threads)
        embedder = read_embedder(Folder(str(Path(self.model).resolve())), self.layers)
        scores: dict[str, dict[str, list[float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for number, url in enumerate(self.tables):
                store = tables_store(Folder(f"{folder}/{number}"), embedder.audio, [url])
                for features, found in self._scores(Labelled(url, store), embedder, number).items():
                    for split, value in found.items():
                        scores.setdefault(features, {}).setdefault(split, []).append(value)
        values = {"scores": scores, "tables": self.tables, "model": self.model, "layers": embedder.layers}
        return Result("frozen", [], values, score_table(scores))

    def _scores(self, table: Labelled, embedder: Embedder, seed: int) -> dict[str, dict[str, float]]:
        from raymae.evaluation.probes import score

        train, tests = table.splits["train"], {k: v for k, v in table.splits.items() if k != "train"}
        y = np.tile(table.labels(train), 1 + self.copies)
        found = dict(statistics_scores(table, tests))
        for features, one in {"pre-trained": embedder, "random weights": untrained(embedder, seed)}.items():
            x = table.embeddings(one, train, self.copies, seed)
            found[features] = {
                split: score("linear", x, y, table.embeddings(one, rows), table.labels(rows))
                for split, rows in tests.items()
            }
        return found


def statistics_scores(table: Labelled, tests: dict[str, Rows]) -> dict[str, dict[str, float]]:
    """What the linear probe and the baselines reach on log-mel statistics."""
    from raymae.evaluation.baselines import Statistics, SvmKind, fit_svm, subtract_band_mean
    from raymae.evaluation.metrics import macro_accuracy
    from raymae.evaluation.probes import score
    from raymae.evaluation.report import model_title
    from raymae.pipeline.evaluate import store_statistics

    train = table.splits["train"]
    x, y = store_statistics(table.store, train), table.labels(train)
    held_out = {split: (store_statistics(table.store, rows), table.labels(rows)) for split, rows in tests.items()}

    def both(values: Statistics) -> Statistics:
        return np.concatenate([values, subtract_band_mean(values)], axis=1).reshape(len(values), -1)

    scores = {split: score("linear", both(x), y, both(one), labels) for split, (one, labels) in held_out.items()}
    found = {STATISTICS: scores}
    names = [str(number) for number in range(int(y.max()) + 1)]
    kinds: tuple[SvmKind, ...] = ("svm", "svm_robust")
    for kind in kinds:
        machine = fit_svm(kind, x, y, names, 0)
        found[model_title(kind)] = {
            split: macro_accuracy(labels, machine.decision_values(one).argmax(1))
            for split, (one, labels) in held_out.items()
        }
    return found


def untrained(embedder: Embedder, seed: int) -> Embedder:
    """The same encoder with the weights that it is born with."""
    from dataclasses import replace

    import torch

    from raymae.models import Encoder

    torch.manual_seed(seed)
    return replace(embedder, encoder=Encoder(embedder.audio, embedder.model).eval())


def score_table(scores: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation of the macro accuracies as a Markdown table."""
    splits = list(next(iter(scores.values())))
    lines = [f"| features | {' | '.join(splits)} |", f"|---|{'---:|' * len(splits)}"]
    for features, found in scores.items():
        cells = [f"{np.mean(found[split]):.3f} ± {stats.pstdev(found[split]):.3f}" for split in splits]
        lines.append(f"| {features} | {' | '.join(cells)} |")
    return "\n".join(lines)
