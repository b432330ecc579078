"""Checkpoints of a training run: `<artifact>/commits/<step>/`, complete once their `commit.json` exists.

Tensors are safetensors, everything else JSON; nothing is unpickled. No random state is stored: every draw is keyed by
its index in the run (`raymae.training.trainer`). Checkpoints are written in the background, from copies.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from raymae.config import redact
from raymae.models.weights_file import load_tensors
from raymae.storage.events import COMMIT_FORMAT, read_commit
from raymae.storage.folder import COMMITS, Folder
from raymae.storage.retry import StorageFullError
from raymae.training.parallel import full, like

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


def load_commit(artifact: Folder, step: int) -> Commit:
    """Load a checkpoint; ValueError if a file of it is damaged or an earlier version wrote it."""
    folder, state = artifact / COMMITS / f"{step:09d}", read_commit(artifact, step)
    parts = {}
    for part in state["parts"]:
        try:
            parts[part] = load_tensors(folder.read_bytes(f"{part}.safetensors"))
        except ValueError as error:
            raise ValueError(f"{redact(folder.url)}/{part}.safetensors is damaged: {error}") from None
    return parts, state


def send_shards(parts: dict[str, dict[str, Tensor]]) -> None:
    """Take part in a checkpoint that rank 0 writes: gather its sharded tensors."""
    for tensors in parts.values():
        for value in tensors.values():
            full(value.detach())


class Committer:
    """Writes checkpoints of one artifact in the background and keeps the newest `keep` of them."""

    def __init__(self, artifact: Folder, keep: int) -> None:
        self.folder, self.keep = artifact / COMMITS, keep
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def commit(self, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Copy the tensors and write them in the background.

        Waits for the previous checkpoint first, and raises its error. The state is copied too: training keeps counting
        while the tensors are being written. Sharded tensors are gathered: the other ranks have to call `send_shards`
        meanwhile.
        """
        self.wait()
        copies = {
            part: {name: full(value.detach()).to("cpu", copy=True).contiguous() for name, value in tensors.items()}
            for part, tensors in parts.items()
        }
        self._pending = self._thread.submit(self._write, step, copies, deepcopy(state))

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        folder, started = self.folder / f"{step:09d}", time.perf_counter()
        folder.remove("commit.json")
        try:
            for part, tensors in parts.items():
                folder.write_bytes(f"{part}.safetensors", save_tensors(tensors))
            folder.write_json("commit.json", {"format": COMMIT_FORMAT, "step": step, "parts": list(parts), **state})
        except StorageFullError:
            self.folder.remove(f"{step:09d}")  # half a checkpoint would take the room that the next one needs
            raise
        log.debug("checkpoint at step %d written in %.1f s", step, time.perf_counter() - started)
        names = self.folder.names()
        finished = [name for name in names if (self.folder / name).exists("commit.json")]
        for name in set(names).difference(finished[-self.keep :]):  # also half-written ones of killed workers
            self.folder.remove(name)

    def clear(self) -> None:
        """Remove all checkpoints, once the run is finished and its result written."""
        self.wait()
        for name in self.folder.names():
            self.folder.remove(name)
