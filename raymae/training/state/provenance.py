"""What a checkpoint was trained on, whether a stage may resume from it, and the git commit of the code."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from raymae.config import redact, to_dict
from raymae.datasets.rows import class_names, fingerprint, unlabelled_rows
from raymae.storage.commits import read_commit, step_of
from raymae.storage.folder import COMMITS, Folder
from raymae.storage.mapped import release_memory
from raymae.training.spec import StageSpec, labelled_rows
from raymae.training.state.segment import check_writer

PART = 65_536
"""Clips whose labels are Python objects at once."""


def provenance(spec: StageSpec) -> dict[str, Any]:
    """The stage, its configuration, its classes and the clips it is trained on, for `commit.json`; of a segment also
    which one it is and which one it continues."""
    classes = class_names(spec.store.clips, spec.config.finetune.labels) if spec.kind != "pretrain" else []
    found = {"stage": spec.name, "config": to_dict(spec.config), "class_names": classes, "clips": trained_clips(spec)}
    if (segment := spec.segment) is None:
        return found
    parent = segment.parent.key if segment.parent else None
    return {**found, "segment": {"key": segment.key, "end": segment.end, "parent": parent}}


def trained_clips(spec: StageSpec) -> dict[str, Any]:
    """The number of clips that a stage is trained on, and a fingerprint (16 digits) of them, their labels and order."""
    columns: dict[str, Any] = {}
    if spec.kind != "pretrain":
        rows, targets = labelled_rows(spec)
        if spec.kind == "consistency":
            rows = np.concatenate([rows, unlabelled_rows(spec.store.clips)])
        chosen = targets[rows]
        columns["label"] = _texts(chosen, chosen.indices, lambda one: ";".join(map(str, sorted(one))))
        if (chosen.data != 1).any():  # soft labels: their weights, too
            columns["weight"] = _texts(chosen, chosen.data, lambda one: one.tobytes().hex())
    else:
        order = spec.order()
        rows = np.concatenate(order.rows)
        columns["weight"] = np.repeat(order.weights, [len(one) for one in order.rows])
    table = pa.table({"clip_id": spec.store.clips["clip_id"].take(rows), **columns})
    found = {"count": len(table), "fingerprint": fingerprint(table, table.column_names)}
    release_memory()
    return found


def _texts(matrix: csr_array, values: NDArray[Any], text: Callable[[NDArray[Any]], str]) -> pa.ChunkedArray:
    """A text for each row of a sparse matrix (n, C) by its part of `values`, some thousand at a time as objects."""
    bounds = matrix.indptr
    chunks = [
        pa.array(
            [text(values[bounds[row] : bounds[row + 1]]) for row in range(start, min(start + PART, len(bounds) - 1))]
        )
        for start in range(0, max(1, len(bounds) - 1), PART)
    ]
    return pa.chunked_array(chunks, pa.string())


def check_commit(spec: StageSpec, name: str, place: Folder | None = None) -> None:
    """Raise ValueError if a checkpoint of a stage was trained on other clips than there are now, or written by another
    segment. It lies in `place` if it is that of the segment before.

    The key of a stage names the clips of the clip table. Which of them are in the store can change: a file that could
    not be read, and was quarantined, may be readable again. The order is drawn over the clips, so a resumed run would
    train on some of them twice and on others never, and could not be reproduced.
    """
    artifact = place or spec.artifact
    check_writer(spec.segment, artifact, name)
    then, now = read_commit(artifact, name)["clips"], trained_clips(spec)
    if then != now:
        raise ValueError(
            f"{spec.name} can't resume from step {step_of(name)}: it was trained on {then['count']} clips (fingerprint "
            f"{then['fingerprint']}), and now there are {now['count']} ({now['fingerprint']}), because "
            "quarantined files are readable again or others are gone. Restore the files, or remove "
            f"{redact(artifact.url)}/{COMMITS} to train this stage from its start"
        )


def source(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """The git commit of the code in `folder`: git_commit and, with uncommitted changes, git_dirty.

    Empty without git, and for code inside a repository that doesn't track it.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        if not git("ls-files", "."):
            return {}
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"git_commit": git("rev-parse", "HEAD")} | ({"git_dirty": "true"} if dirty else {})
    except (OSError, subprocess.SubprocessError):
        return {}
