"""A training stage as data: all that a worker on any node needs to run it. Without torch: the driver reads it too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raymae.config import Config, FinetuneConfig, TrainConfig
from raymae.config.stages import Kind
from raymae.datasets.labels import target_matrix
from raymae.datasets.rows import Rows, class_names, find_rows, rows_of, unlabelled_rows
from raymae.features.draws import mix
from raymae.features.store import FeatureStore
from raymae.storage.folder import Folder
from raymae.storage.lease import Fence
from raymae.storage.mapped import SharedTables
from raymae.training.batches.order import Order, PairedOrder, SharedOrder, WeightedOrder
from raymae.training.state.segment import Segment

CNN_GROUP = 32
"""Most clips of a CNN's mixing groups, each of which is a batch for its batch norm."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One training stage of a pipeline."""

    name: str
    """Its name in the pipeline."""
    kind: Kind
    """Its entry in `raymae.training.run_stage.TASKS`."""
    config: Config
    artifact: Folder
    """The folder that it writes."""
    store: FeatureStore
    """The clips that it reads."""
    encoder: Folder | None = None
    """Pre-training, or imported weights under the same names, whose encoder it is initialised from."""
    classifier: Folder | None = None
    """Classifier of the same classes that it is initialised from, including the head; replaces `encoder`."""
    pseudo_labels: Folder | None = None
    """Pseudo-labels that it trains on beside the labels."""
    cnn: str | None = None
    """timm name of a CNN that replaces the encoder."""
    steps: int | None = None
    """Steps of the run; None: as many as the section's epochs have."""
    repeats: str | None = None
    """The stage of another configuration whose random draws it repeats."""
    responses: NDArray[np.float32] | None = None
    """Offsets (n, F) of the impulse responses that the stage augments with; read once, by the driver."""
    response_waveforms: NDArray[np.float32] | None = None
    """The responses themselves (n, taps), where `augment.responses_by` = convolution."""
    strong_responses: NDArray[np.float32] | None = None
    """The same for the strong views of consistency training."""
    segment: Segment | None = None
    """The part of the stage's steps that is trained, from the end of another artifact's; None: all of them."""
    fence: Fence | None = None
    """The lease under which the stage is trained; None where nobody else can know of the artifact."""

    def check_lease(self) -> None:
        """Raise LeaseLostError if another process has taken the stage over: this one may not write any more."""
        if self.fence:
            self.fence.check()

    def ends_at(self, step: int) -> bool:
        """Whether what is trained of the stage ends at a step before its last."""
        return self.segment is not None and step >= self.segment.end

    @property
    def train(self) -> TrainConfig:
        """The stage's own section of the configuration."""
        return self.config.pretrain if self.kind == "pretrain" else self.classification

    @property
    def classification(self) -> FinetuneConfig:
        """The section of the configuration of a stage that trains a classifier."""
        finetune, baseline = self.config.finetune, self.config.evaluate
        if self.cnn and baseline.cnn_lr is not None:
            finetune = replace(finetune, lr=baseline.cnn_lr)
        if self.cnn and baseline.cnn_crop_seconds is not None:
            finetune = replace(finetune, augment=replace(finetune.augment, crop_seconds=baseline.cnn_crop_seconds))
        return self.config.consistency.training(finetune) if self.kind == "consistency" else finetune

    @property
    def is_balanced(self) -> bool:
        """Whether classes, or classes by device, are sampled equally often."""
        return self.kind != "pretrain" and self.classification.balance in ("class", "class_device")

    @cached_property
    def pseudo_rows(self) -> Rows:
        """The rows with an accepted pseudo-label, in its order."""
        return np.zeros(0, np.int64) if self.pseudo_labels is None else accepted_rows(self.pseudo_labels, self.store)[0]

    @property
    def is_shared(self) -> bool:
        """Whether the labelled clips have a fixed share of every mixing group, beside pseudo-labelled ones."""
        return self.config.pseudo_label.labelled_share is not None and len(self.pseudo_rows) > 0

    def seed(self) -> int:
        """The stage's seed; the same for equal stages, whatever pipeline they are part of."""
        return mix(self.config.seed, *(self.repeats or self.name).encode())

    def order(self) -> Order:
        """The order of the stage's clips: labelled and unlabelled ones side by side in consistency training, labelled
        and pseudo-labelled ones with `pseudo_label.labelled_share`."""
        sources, batch = pretrain_sources(self) if self.kind == "pretrain" else labelled_sources(self), 1
        train, more = self.train, dict[str, Any]()
        kind: Callable[..., Order] = Order
        if self.kind == "consistency" and len(unlabelled := unlabelled_rows(self.store.clips)):
            sources.append((unlabelled, 1.0))
            ratio = self.config.consistency.ratio
            kind, more, batch = PairedOrder, {"shares": (1, ratio)}, 1 + ratio
        elif self.kind != "pretrain" and self.classification.balance == "label_frequency":
            kind, more = WeightedOrder, {"chances": chances(self, sources[0][0])}
        elif self.is_shared:
            sources.append((self.pseudo_rows, 1.0))
            kind, more = SharedOrder, {"shares": self.config.pseudo_label.clips_of(self.group_size)}
        rows = self.store.tables.array(np.concatenate([rows for rows, _ in sources]))
        order = kind(
            rows=tuple(np.split(rows, np.cumsum([len(some) for some, _ in sources])[:-1])),
            weights=tuple(weight for _, weight in sources),
            seed=self.seed(),
            epochs=train.epochs,
            global_batch_size=batch * train.global_batch_size,
            group_size=batch * self.group_size,
            chunk=self.chunk,
            shifted=self.kind == "pretrain",
            **more,
        )
        if self.steps is None:
            return order
        return replace(order, epochs=(self.steps - 0.5) * train.global_batch_size / order.rows_per_epoch)

    @property
    def chunk(self) -> int:
        """Neighbours of the store that stay together in an epoch: 1, a full shuffle, where clips have labels, since
        those of one recording, which are neighbours, mostly share theirs."""
        return self.config.data.shuffle_chunk if self.kind == "pretrain" else 1

    @property
    def group_size(self) -> int:
        """Clips of a mixing group, unlabelled ones of consistency training not counted."""
        return math.gcd(self.train.global_batch_size, CNN_GROUP) if self.cnn else self.train.group_size

    @property
    def always_masks(self) -> bool:
        """Whether attention takes a mask even for batches that need none: in compiled models of stages with short
        clips, so that all batches have the same arrays. Where clips are whole a rare dropout is compiled apart."""
        if not self.train.compile:
            return False
        if "seconds" not in self.store.clips.column_names:
            return True
        rows = np.unique(np.concatenate(self.order().rows))
        seconds = self.store.clips["seconds"].take(rows)
        audio = self.config.audio
        augment = (self.config.pretrain if self.kind == "pretrain" else self.classification).augment
        needed = audio.frames_of(augment.crop_seconds) * audio.hop_length / audio.sample_rate
        return bool(seconds.null_count or pc.min(seconds).as_py() < needed)

    @property
    def slots(self) -> int:
        """Mixing groups of a step: the most workers that can share it."""
        return self.train.global_batch_size // self.group_size

    @property
    def groups_at_once(self) -> int:
        """Most mixing groups of a forward pass; a CNN's batch norm takes one at a time."""
        return 1 if self.cnn else max(1, self.train.micro_batch_size // self.group_size)


def pretrain_sources(spec: StageSpec) -> list[tuple[Rows, float]]:
    """Rows and weight of every source: of the training split (unless `pool_only`) and the pool, never val or test."""
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
    """Rows and weight of the clips to fine-tune on: one source, or one per cell of `finetune.balance`, equally often.

    An epoch has as many rows as there are clips: it repeats the clips of small cells and skips some of large ones.
    Pseudo-labelled clips are left out where they have a share of their own.
    """
    rows, targets = labelled_rows(spec)
    if spec.is_shared:
        rows = np.setdiff1d(rows, spec.pseudo_rows)
    if not spec.is_balanced:
        return [(rows, 1.0)]
    cells = np.asarray(targets[rows].argmax(axis=1)).ravel().astype(np.int64)
    if spec.classification.balance == "class_device":
        devices = pc.fill_null(spec.store.clips["device"].take(rows), "").combine_chunks().dictionary_encode()
        names = np.array(devices.dictionary.to_pylist(), str)
        cells = cells * (1 + len(names)) + np.argsort(np.argsort(names))[devices.indices.to_numpy()]
    found = [rows[cells == cell] for cell in np.unique(cells)]
    return [(some, len(rows) / (len(found) * len(some))) for some in found]


def chances(spec: StageSpec, rows: Rows) -> NDArray[np.float64]:
    """How often each of some labelled rows (n,) is drawn with `finetune.balance` = label_frequency, relatively."""
    targets = labelled_rows(spec)[1][rows].astype(np.float64)
    return np.asarray(targets @ (1 / np.maximum(targets.sum(axis=0), 1)))


def labelled_rows(spec: StageSpec) -> tuple[Rows, csr_array]:
    """The rows to fine-tune on, labelled training clips and accepted pseudo-labels, and the targets of all rows of the
    store, (len(store), C), all zeros for rows that are not trained on.

    Soft pseudo-labels are the teacher's calibrated probabilities of all classes; ValueError if those are other classes
    than the labels'.
    """
    clips, kind = spec.store.clips, spec.config.finetune.labels
    names = class_names(clips, kind)
    labels = pc.if_else(pc.equal(clips["split"], "train"), clips["scene_label"], pa.scalar(None, pa.string()))
    soft: csr_array | None = None
    if spec.pseudo_labels:
        rows, pseudo = accepted_rows(spec.pseudo_labels, spec.store)
        unlabelled = rows_of(clips, "train", labelled=False)
        assert np.isin(rows, unlabelled).all(), "a pseudo-labelled clip is not an unlabelled training clip"
        if "probabilities" in pseudo.column_names:
            soft = soft_targets(pseudo, rows, len(clips), names)
        else:
            place = np.full(len(clips), -1)
            place[rows] = np.arange(len(rows))
            given = pseudo["pseudo_label"].take(pa.array(place, mask=place < 0))
            labels = pc.if_else(pa.array(place >= 0), given, labels)
    targets = target_matrix(labels, names, kind)
    if soft is not None:
        targets = csr_array(targets + soft)
    return np.flatnonzero(np.diff(targets.indptr)).astype(np.int64), targets


def label_weights(spec: StageSpec) -> NDArray[np.float32]:
    """What the label of every row of the store counts in the loss: (len(store),)."""
    weights = np.ones(len(spec.store), np.float32)
    weights[spec.pseudo_rows] = spec.config.pseudo_label.weight
    return weights


def probe_weights(spec: StageSpec) -> NDArray[np.float32]:
    """What the label of every row of the store counts in a whole epoch, as a share of the most: (len(store),)."""
    weights, pseudo = label_weights(spec), spec.pseudo_rows
    if spec.is_shared:
        labelled = np.setdiff1d(labelled_rows(spec)[0], pseudo)
        counts = spec.config.pseudo_label.clips_of(spec.group_size)
        for rows, count in zip((labelled, pseudo), counts, strict=True):
            weights[rows] *= count / len(rows)
        weights /= weights[np.concatenate([labelled, pseudo])].max()
    return weights


def accepted_rows(folder: Folder, store: FeatureStore) -> tuple[Rows, pa.Table]:
    """The rows of the store that a table of pseudo-labels accepts, and its own rows for them."""
    pseudo = accepted_labels(folder)
    places = pc.index_in(pseudo["clip_id"], value_set=store.clips["clip_id"].combine_chunks())
    return places.drop_null().to_numpy().astype(np.int64), pseudo.filter(pc.is_valid(places))


def shared_targets(targets: csr_array, tables: SharedTables) -> csr_array:
    """The same targets (n, C), whose memory all processes of a node share."""
    parts = tuple(tables.array(values) for values in (targets.data, targets.indices, targets.indptr))
    return csr_array(parts, shape=targets.shape)


def accepted_labels(folder: Folder) -> pa.Table:
    """The accepted rows of a table of pseudo-labels (columns: `raymae.pseudo_labels.table`)."""
    pseudo = folder.read_table("pseudo_labels.parquet", checked=True)
    return pseudo.filter(pseudo["accepted"])


def soft_targets(pseudo: pa.Table, rows: Rows, count: int, names: list[str]) -> csr_array:
    """The probabilities of some pseudo-labels as targets (count, C), at their rows."""
    classes = json.loads(pseudo.schema.metadata[b"class_names"])
    if classes != names:
        raise ValueError(
            f"the pseudo-labels are probabilities of {', '.join(classes)}; the labels are {', '.join(names)}"
        )
    values = np.asarray(pc.list_flatten(pseudo["probabilities"]), np.float32)
    rows_of_values = np.repeat(rows, len(names))
    columns = np.tile(np.arange(len(names)), len(rows))
    return csr_array((values, (rows_of_values, columns)), shape=(count, len(names)))
