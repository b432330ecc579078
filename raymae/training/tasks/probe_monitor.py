"""Monitor pre-training: probes on the embeddings of labelled clips, and the effective rank of the embeddings.

The loss says little about the features: it may stagnate while they improve, and fall while they collapse.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raymae.datasets.rows import Rows, class_names, group_ids, rows_of
from raymae.evaluation.probes import ProbeKind, cross_validated, effective_rank, score
from raymae.features.store import iterate
from raymae.inference.embedder import Embedder
from raymae.training.batches.order import sample
from raymae.training.spec import StageSpec, pretrain_sources
from raymae.training.worker import Session

PROBES: tuple[ProbeKind, ...] = ("linear", "knn")
BATCH = 64


def monitor(spec: StageSpec, embedder: Embedder, session: Session) -> dict[str, float]:
    """Macro accuracy of the probes and the effective rank; called by every rank, the same on each.

    If split val has labels, the probes are trained on the training split and scored on val; otherwise they are
    cross-validated by group within the training split. Test splits are never read. At most `pretrain.probe_clips` clips
    of a split are used. Without labels, or with multi-label clips, only the effective rank is computed.
    """
    count = spec.config.pretrain.probe_clips
    if not count:
        return {}
    train = sample(rows_of(spec.store.clips, "train", labelled=True), count, spec.seed())
    val = sample(rows_of(spec.store.clips, "val", labelled=True), count, spec.seed())
    if not len(train) or spec.config.finetune.labels == "multi":
        unlabelled = np.concatenate([rows for rows, _ in pretrain_sources(spec)])
        return {
            "probe/effective_rank": effective_rank(embed_rows(spec, embedder, sample(unlabelled, count, 0), session))
        }
    x = embed_rows(spec, embedder, np.concatenate([train, val]), session)
    y = labels_of(spec, np.concatenate([train, val]))
    found: dict[str, float | None] = {"probe/effective_rank": effective_rank(x)}
    n, known = len(train), np.isin(y, y[: len(train)])
    for kind in PROBES:
        if len(np.unique(y[:n])) < 2:
            continue
        if len(val):
            held_out = np.flatnonzero(known)[np.flatnonzero(known) >= n]
            found[f"probe/{kind}"] = score(kind, x[:n], y[:n], x[held_out], y[held_out]) if len(held_out) else None
        else:
            found[f"probe/{kind}"] = cross_validated(kind, x, y, groups_of(spec, train))
    return {name: value for name, value in found.items() if value is not None}


def embed_rows(spec: StageSpec, embedder: Embedder, rows: Rows, session: Session) -> NDArray[np.float32]:
    """The embeddings (n, E) of some rows; each rank computes a part."""
    own = rows[session.rank :: session.world_size]
    parts = [embedder.clips(log_mel, frames) for _, log_mel, frames in iterate(spec.store, own, BATCH)]
    gathered = session.gather(np.concatenate(parts) if parts else None)
    width = next(part.shape[1] for part in gathered if part is not None)
    found = np.empty((len(rows), width), np.float32)
    for rank, part in enumerate(gathered):
        if part is not None:
            found[rank :: session.world_size] = part
    return found


def labels_of(spec: StageSpec, rows: Rows) -> Rows:
    """Class indices of labelled rows; -1 for a class that the training split doesn't have."""
    number = {name: index for index, name in enumerate(class_names(spec.store.clips))}
    labels = spec.store.clips["scene_label"].take(rows).to_pylist()
    return np.array([number.get(label, -1) for label in labels], np.int64)


def groups_of(spec: StageSpec, rows: Rows) -> NDArray[np.str_]:
    """The group of each row; a clip without one is a group of its own."""
    clips = spec.store.clips.take(rows)
    return np.array(group_ids(clips).to_pylist())
