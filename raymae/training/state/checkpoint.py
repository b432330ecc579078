"""Write and load the checkpoints of a training run; which one a run resumes from is in `raymae.storage.commits`.

Tensors are safetensors, everything else JSON; nothing is unpickled. No random state is stored: every draw is keyed by
its index in the run (`raymae.training.trainer`). Checkpoints are written in the background, from copies.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from raymae.config import redact
from raymae.models.weights_file import load_tensors
from raymae.storage.checksums import crc32, digest
from raymae.storage.commits import (
    COMMIT,
    COMMIT_FORMAT,
    DamagedCommitError,
    complete,
    part_file,
    read_commit,
    set_aside,
    step_of,
)
from raymae.storage.folder import COMMITS, Folder
from raymae.storage.retry import StorageFullError
from raymae.training.parallel import full, like
from raymae.training.state.segment import Segment
from raymae.training.worker import Session

log = logging.getLogger(__name__)

Commit = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
"""A checkpoint: its tensors by part ("model", "optimizer", "ema", "best") and its state."""


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as named tensors (the groups' settings follow from the configuration)."""
    return {
        f"{index}.{name}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load packed moments into an optimiser, sharded as its weights are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_commit(artifact: Folder, name: str) -> Commit:
    """Load a checkpoint.

    Raises:
        ValueError: another version has written it, in another format.
        DamagedCommitError: a file of it is missing or isn't what was written.
    """
    folder, state = artifact / COMMITS / name, read_commit(artifact, name)
    parts = {}
    for part, written in state.pop("parts").items():
        where = f"{redact(folder.url)}/{part_file(part)}"
        try:
            content = folder.read_bytes(part_file(part))
            if crc32(content) != written["crc32"]:
                raise ValueError("it doesn't have its checksum")
            parts[part] = load_tensors(content)
        except FileNotFoundError:
            raise DamagedCommitError(f"{where} is missing") from None
        except ValueError as error:
            raise DamagedCommitError(f"{where} is damaged: {error}") from None
    return parts, state


def load_newest(session: Session, artifact: Folder) -> tuple[str | None, Commit | None]:
    """The checkpoint that the session resumes from, and its name; without any, None and None. Called by every rank.

    A damaged one is set aside, and the session asked again. DamagedCommitError if that changes nothing: data for the
    damaged checkpoint is on its way.
    """
    before = None
    while name := session.gather(session.resumes_from())[0]:  # rank 0's: another may become the newest at any moment
        try:
            return name, load_commit(artifact, name)
        except DamagedCommitError as error:
            if session.rank == 0 and name != before:
                set_aside(artifact, name, str(error))
            if name == before:
                raise
        before = name
        session.gather(None)  # rank 0 has set it aside
    return None, None


def load_start(
    session: Session, artifact: Folder, segment: Segment | None = None
) -> tuple[Folder, str | None, Commit | None]:
    """The checkpoint that a run begins from, where it lies and its name: the run's own newest one, else that at which
    the segment before it ended; without any, None and None. Called by every rank."""
    name, commit = load_newest(session, artifact)
    parent = segment.parent if segment else None
    if name is not None or parent is None:
        return artifact, name, commit
    before = parent.commit()
    return parent.artifact, before, load_commit(parent.artifact, before)


def send_shards(parts: dict[str, dict[str, Tensor]]) -> None:
    """Take part in a checkpoint that rank 0 writes: gather its sharded tensors."""
    for tensors in parts.values():
        for value in tensors.values():
            full(value.detach())


class Committer:
    """Writes checkpoints of one artifact in the background and keeps the newest `keep` of them.

    Args:
        check: called before a checkpoint becomes complete; raises if this process may not write any more
            (`raymae.storage.lease.Fence.check`).
    """

    def __init__(self, artifact: Folder, keep: int, check: Callable[[], None] = lambda: None) -> None:
        self.artifact, self.folder, self.keep, self.check = artifact, artifact / COMMITS, keep, check
        self.writer = uuid.uuid4().hex[:8]
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def commit(
        self,
        step: int,
        parts: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        events: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the tensors and write them in the background; `events` waits until those up to the step are stored.

        Waits for the previous checkpoint first, and raises its error. The state is copied too: training keeps counting
        while the tensors are being written. Sharded tensors are gathered: the other ranks have to call `send_shards`
        meanwhile.
        """
        self.wait()
        copies = {
            part: {name: full(value.detach()).to("cpu", copy=True).contiguous() for name, value in tensors.items()}
            for part, tensors in parts.items()
        }
        self._pending = self._thread.submit(self._write, step, copies, deepcopy(state), events)

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(
        self, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any], events: Callable[[], None]
    ) -> None:
        name, started, written = f"{step:09d}-{self.writer}", time.perf_counter(), {}
        folder = self.folder / name
        folder.remove(COMMIT)
        try:
            for part, tensors in parts.items():
                content = save_tensors(tensors)
                folder.write_bytes(part_file(part), content)
                written[part] = {"size": len(content), "crc32": crc32(content)}
            events()
            self.check()
            entries = {"step": step, "parts": written, **state}
            folder.write_json(COMMIT, {"format": COMMIT_FORMAT, "digest": digest(entries), **entries})
        except StorageFullError:
            self.folder.remove(name)  # half a checkpoint would take the room that the next one needs
            raise
        log.debug("checkpoint at step %d written in %.1f s", step, time.perf_counter() - started)
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove what is older than the oldest checkpoint to keep, also half-written ones of killed workers.

        Nothing that is younger: another process may be writing it.
        """
        oldest = step_of(complete(self.artifact)[-self.keep :][0])
        for name in self.folder.names():
            if name[:9].isdigit() and step_of(name) < oldest:
                self.folder.remove(name)

    def clear(self, kept: str | None = None) -> None:
        """Remove all checkpoints, but one that others begin from, once the run is finished and its result written."""
        self.wait()
        for name in self.folder.names():
            if name != kept:
                self.folder.remove(name)
