"""`frozen`: probes on a frozen encoder with your own tables, against random weights and log-mel statistics."""

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
from raymae.config import AudioConfig, Config, DataConfig
from raymae.datasets.recordings import load_clips
from raymae.datasets.rows import Rows, class_names, find_rows
from raymae.features.store import FeatureStore
from raymae.features.write import write_store
from raymae.storage.folder import Folder

if TYPE_CHECKING:
    from raymae.inference.embedder import Embedder

BATCH = 64
STATISTICS = "log-mel statistics"


def tables_store(folder: Folder, audio: AudioConfig, tables: Sequence[str], pools: Sequence[str] = ()) -> FeatureStore:
    """Write the feature store of some tables in this process."""
    data = DataConfig(dataset="table", tables=tuple(tables), pool_tables=tuple(pools))
    clips = load_clips(Config(data=data, audio=audio), folder)
    return write_store(folder, clips, audio, ClipReader(audio, data.file_timeout), data.shard_mb)


@dataclass(frozen=True)
class Labelled:
    """Labelled clips of one table: those of the split train and of its test splits."""

    name: str
    store: FeatureStore

    @cached_property
    def splits(self) -> dict[str, Rows]:
        """Labelled rows by split: train, and all splits whose names begin with test."""
        clips = self.store.clips
        names = [name for name in pc.unique(clips["split"]).sort().to_pylist() if name.startswith(("train", "test"))]
        return {
            name: find_rows(pc.and_(pc.equal(clips["split"], name), pc.is_valid(clips["scene_label"])))
            for name in names
        }

    def labels(self, rows: Rows) -> NDArray[np.int64]:
        """Class numbers; ValueError for a class without training clips."""
        classes = class_names(self.store.clips)
        labels = self.store.clips["scene_label"].take(rows).to_pylist()
        for label in labels:
            if label not in classes:
                raise ValueError(f"{self.name}: no clip of split train has the scene_label {label!r} of a test split")
        return np.array([classes.index(label) for label in labels], np.int64)

    def embeddings(self, embedder: Embedder, rows: Rows, copies: int = 0, seed: int = 0) -> NDArray[np.float32]:
        """Embeddings ((1 + copies) n, 2 E) of the clips, followed by those of their copies with random EQ.

        Each is the embedding of the raw clip concatenated with that of the clip with the band mean subtracted.
        """
        found = []
        for start in range(0, len(rows), BATCH):
            log_mel, frames = self.store.read(rows[start : start + BATCH])
            views = [log_mel.astype(np.float32)]
            views += [with_random_eq(views[0], frames, embedder.audio, (seed, start, copy)) for copy in range(copies)]
            found.append([raw_and_subtracted(embedder, view, frames) for view in views])
        return np.concatenate([np.concatenate(part) for part in zip(*found, strict=True)])


def raw_and_subtracted(
    embedder: Embedder, log_mel: NDArray[np.float32], frames: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Embeddings (B, 2 E) of log-mels (B, T, F): raw, concatenated with those with the band mean subtracted.

    The band mean is subtracted by `raymae.models.classifier.subtract_band_mean`. Only the first half depends on the
    response of the device. Chosen on classes of the pool, where the second half gains 1 to 7 points on devices that
    the probe wasn't trained on.
    """
    import torch

    from raymae.models.classifier import subtract_band_mean

    subtracted = subtract_band_mean(torch.from_numpy(log_mel), torch.from_numpy(frames)).numpy()
    return np.concatenate([embedder.clips(one, frames) for one in (log_mel, subtracted)], axis=1)


def with_random_eq(
    log_mel: NDArray[np.float32], frames: NDArray[np.integer], audio: AudioConfig, keys: tuple[int, ...]
) -> NDArray[np.float32]:
    """Apply `augment.random_eq` to every clip of log-mels (B, T, F), with draws seeded by `keys`."""
    import torch

    from raymae.config import AugmentConfig
    from raymae.features.augment import add_offsets, random_eq
    from raymae.features.draws import Draws, mix

    drawn = random_eq(AugmentConfig(eq_p=1.0), audio, Draws(mix(*keys), np.arange(len(log_mel))))
    x, valid = torch.from_numpy(log_mel), torch.from_numpy(frames).long()
    return np.asarray(add_offsets(x, valid, torch.from_numpy(drawn.astype(np.float32))).numpy())


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Train a linear probe on frozen embeddings of labelled clips, separately for every table.

    Each probe is trained on the labelled clips of the split train and scored on the table's test splits: macro
    accuracy, mean and standard deviation over the tables. The same probe is trained on the encoder with random weights
    (with a different seed per table) and on log-mel statistics; the baselines `svm` and `svm_robust` use the statistics
    too. All probes get the features of the raw clip concatenated with those with the band mean subtracted.

    `--json` keys: `scores`, features → split → macro accuracy by table; `tables`; `model`; `layers`.
    """

    model: str
    """Folder of a pre-trained encoder or of a classifier."""
    tables: tuple[str, ...]
    """Tables with labels, a split train and splits whose names begin with test; each is a separate run."""
    layers: tuple[int, ...] = ()
    """Layers to average; the default is the last one."""
    copies: int = 0
    """Copies of each labelled clip with random EQ, added to the training clips of the probe."""
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
    """Macro accuracies of the linear probe and of the baselines on log-mel statistics."""
    from raymae.evaluation.baselines import Statistics, SvmKind, fit_svm, subtract_band_mean
    from raymae.evaluation.metrics import macro_accuracy
    from raymae.evaluation.probes import score
    from raymae.evaluation.report import model_title
    from raymae.pipeline.evaluate import store_statistics

    train = table.splits["train"]
    x, y = store_statistics(table.store, train), table.labels(train)
    held_out = {split: (store_statistics(table.store, rows), table.labels(rows)) for split, rows in tests.items()}

    def raw_and_subtracted_statistics(values: Statistics) -> Statistics:
        return np.concatenate([values, subtract_band_mean(values)], axis=1).reshape(len(values), -1)

    scores = {
        split: score("linear", raw_and_subtracted_statistics(x), y, raw_and_subtracted_statistics(one), labels)
        for split, (one, labels) in held_out.items()
    }
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
    """Encoder of the same architecture with random initial weights."""
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
