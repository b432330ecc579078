"""A training stage as data: what a worker on any node needs to run it. No torch here, the driver reads it too."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raymae.config import Config, FinetuneConfig, TrainConfig
from raymae.datasets.labels import target_matrix
from raymae.datasets.rows import Rows, class_names, find_rows, rows_of, unlabelled_rows
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.training.batches.order import Order, PairedOrder, mix

Kind = Literal["pretrain", "finetune", "consistency"]

TIMED_EPOCHS = 200
"""A stage with a time budget is given this many times the configured epochs of data, more than it can use."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One training stage of a pipeline."""

    name: str
    """Its name in the pipeline."""
    kind: Kind
    """Its entry in `raymae.training.run_stage.STAGES`."""
    config: Config
    artifact: Folder
    """What it writes."""
    store: FeatureStore
    """What it reads."""
    encoder: Folder | None = None
    """Pre-training, or given weights in its names, whose encoder it starts from."""
    classifier: Folder | None = None
    """Classifier of the same classes that it starts from, head and all, in the encoder's place."""
    pseudo_labels: Folder | None = None
    """Labels that join the given ones."""
    cnn: str | None = None
    """timm name of the network that takes the encoder's place."""
    pace: Folder | None = None
    """A finished stage whose seconds are this stage's budget."""
    repeats: str | None = None
    """The stage of another configuration that it is, whose draws it makes."""
    responses: NDArray[np.float32] | None = None
    """Offsets (n, F) of the impulse responses that the stage augments with: read once, by the driver."""
    strong_responses: NDArray[np.float32] | None = None
    """The same of the strong views of consistency training."""

    @property
    def train(self) -> TrainConfig:
        """The stage's own section."""
        return self.config.pretrain if self.kind == "pretrain" else self.classification

    @property
    def classification(self) -> FinetuneConfig:
        """The section of a stage that trains a classifier."""
        finetune, baseline = self.config.finetune, self.config.evaluate
        if self.cnn and baseline.cnn_lr is not None:
            finetune = replace(finetune, lr=baseline.cnn_lr)
        if self.cnn and baseline.cnn_crop_seconds is not None:
            finetune = replace(finetune, augment=replace(finetune.augment, crop_seconds=baseline.cnn_crop_seconds))
        return self.config.consistency.training(finetune) if self.kind == "consistency" else finetune

    @property
    def is_balanced(self) -> bool:
        """Whether some labelled clips come more often than others."""
        return self.kind != "pretrain" and self.classification.balance != "none"

    def seed(self) -> int:
        """The stage's seed; the same for equal stages, whatever pipeline they stand in."""
        return mix(self.config.seed, *(self.repeats or self.name).encode())

    def order(self) -> Order:
        """The order of the stage's clips; of consistency training labelled and unlabelled ones side by side."""
        sources, batch = pretrain_sources(self) if self.kind == "pretrain" else labelled_sources(self), 1
        train, kind, more = self.train, Order, {}
        if self.kind == "consistency" and len(unlabelled := unlabelled_rows(self.store.clips)):
            sources.append((unlabelled, 1.0))
            ratio = self.config.consistency.ratio
            kind, more, batch = PairedOrder, {"ratio": ratio}, 1 + ratio
        if self.pace:
            train = replace(train, epochs=train.epochs * TIMED_EPOCHS)
        return kind(
            rows=tuple(rows for rows, _ in sources),
            weights=tuple(weight for _, weight in sources),
            seed=self.seed(),
            epochs=train.epochs,
            global_batch_size=batch * train.global_batch_size,
            micro_batch_size=batch * train.micro_batch_size,
            chunk=1 if self.is_balanced else self.config.data.shuffle_chunk,  # neighbours would be of one cell
            **more,
        )


def pretrain_sources(spec: StageSpec) -> list[tuple[Rows, float]]:
    """Rows and weight of every source: the training split, unless left out, and the pool; never val or test."""
    clips = spec.store.clips
    wanted = pa.array(["pool"] if spec.config.pretrain.pool_only else ["pool", "train"])
    mask = pc.is_in(clips["split"], wanted)
    sources = []
    for source in pc.unique(clips["source"]).sort().to_pylist():
        rows = find_rows(pc.and_(mask, pc.equal(clips["source"], source)))
        if len(rows):
            sources.append((rows, clips["weight"][int(rows[0])].as_py()))
    return sources


def labelled_sources(spec: StageSpec) -> list[tuple[Rows, float]]:
    """Rows and weight of what is fine-tuned on: as they are, or in cells of `finetune.balance` that come equally often.

    An epoch has as many rows as there are clips; a cell of few is passed over several times in it, one of many in part.
    """
    rows, targets = labelled_rows(spec)
    if not spec.is_balanced:
        return [(rows, 1.0)]
    cells = np.asarray(targets[rows].argmax(axis=1)).ravel().astype(np.int64)
    if spec.classification.balance == "class_device":
        devices = pc.fill_null(spec.store.clips["device"].take(rows), "").to_numpy()
        cells = cells * (1 + len(devices)) + np.unique(devices.astype(str), return_inverse=True)[1]
    found = [rows[cells == cell] for cell in np.unique(cells)]
    return [(some, len(rows) / (len(found) * len(some))) for some in found]


def labelled_rows(spec: StageSpec) -> tuple[Rows, csr_array]:
    """Rows to fine-tune on, the labelled training clips and the accepted pseudo-labels; and the targets of all rows of
    the store, (len(store), C), which are empty for the rows that are not trained on.

    Soft pseudo-labels are the teacher's calibrated probabilities of all classes. Raises ValueError where those are of
    other classes than the labels.
    """
    clips, kind = spec.store.clips, spec.config.finetune.labels
    names = class_names(clips, kind)
    labels = clips["scene_label"].to_pandas().where(clips["split"].to_pandas() == "train")
    soft: csr_array | None = None
    if spec.pseudo_labels:
        guessed = accepted_labels(spec.pseudo_labels)
        places = pc.index_in(guessed["clip_id"], value_set=clips["clip_id"].combine_chunks())
        rows = places.drop_null().to_numpy().astype(np.int64)
        guessed = guessed.filter(pc.is_valid(places))
        assert np.isin(rows, rows_of(clips, "train", labelled=False)).all(), "an accepted clip is not free for a guess"
        if "probabilities" in guessed.column_names:
            soft = soft_targets(guessed, rows, len(clips), names)
        else:
            labels.iloc[rows] = guessed["pseudo_label"].to_pandas().to_numpy()
    column = pa.chunked_array([pa.array(labels, pa.string(), from_pandas=True)])
    targets = target_matrix(column, names, kind)
    if soft is not None:
        targets = csr_array(targets + soft)
    return np.flatnonzero(np.diff(targets.indptr)).astype(np.int64), targets


def accepted_labels(folder: Folder) -> pa.Table:
    """The accepted rows of a table of pseudo-labels (`pseudo_label.pseudo_label` names its columns)."""
    guessed = folder.read_table("pseudo_labels.parquet")
    return guessed.filter(guessed["accepted"])


def soft_targets(guessed: pa.Table, rows: Rows, count: int, names: list[str]) -> csr_array:
    """The probabilities of some pseudo-labels as the targets (count, C) of their rows."""
    theirs = json.loads(guessed.schema.metadata[b"class_names"])
    if theirs != names:
        raise ValueError(
            f"the pseudo-labels are probabilities of {', '.join(theirs)}; the labels are {', '.join(names)}"
        )
    values = np.asarray(pc.list_flatten(guessed["probabilities"]), np.float32)
    rows_of_values = np.repeat(rows, len(names))
    columns = np.tile(np.arange(len(names)), len(rows))
    return csr_array((values, (rows_of_values, columns)), shape=(count, len(names)))
