"""Checkpoints of a stage as files, and which of them a run resumes from. Without torch: the driver asks, too.

A checkpoint is a folder `<artifact>/commits/<step>-<writer>/`, complete once its `commit.json` exists, which holds the
size and the CRC-32 of its other files, and a hash of its own content. Every process that writes has folders of its own:
two that each take the other for dead can't write into the same one.
"""

from __future__ import annotations

import logging
from typing import Any

from raymae.config import redact
from raymae.storage.checksums import check_format, checksum_of, digest
from raymae.storage.folder import COMMITS, Folder

log = logging.getLogger(__name__)

COMMIT = "commit.json"
COMMIT_FORMAT = 3
"""Format number of `commit.json`; raised when the names of its fields or settings change."""
SET_ASIDE = "damaged.json"
"""The `commit.json` of a damaged checkpoint, renamed: it is complete no more."""


class DamagedCommitError(ValueError):
    """A file of a checkpoint is missing or differs from what was written."""


def step_of(name: str) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(name[:9])


def complete(artifact: Folder) -> list[str]:
    """Names of the complete checkpoints, the newest last."""
    folder = artifact / COMMITS
    return [name for name in folder.names() if name[:9].isdigit() and folder.exists(f"{name}/{COMMIT}")]


def latest_step(artifact: Folder) -> int | None:
    """Step of the newest complete checkpoint, or None; doesn't look at its files."""
    folder = artifact / COMMITS
    names = reversed([name for name in folder.names() if name[:9].isdigit()])
    return next((step_of(name) for name in names if folder.exists(f"{name}/{COMMIT}")), None)


def read_commit(artifact: Folder, name: str) -> dict[str, Any]:
    """What a checkpoint's `commit.json` holds, all but the tensors.

    Raises:
        ValueError: another version has written it, in another format.
        DamagedCommitError: it isn't what any version has written.
    """
    folder = artifact / COMMITS / name
    try:
        state = folder.read_json(COMMIT)
    except ValueError as error:
        raise DamagedCommitError(str(error)) from None
    if isinstance(state, dict):
        check_format(state.pop("format", 1), COMMIT_FORMAT, f"{redact(folder.url)}/{COMMIT}")
    if not (isinstance(state, dict) and isinstance(state.get("parts"), dict)):
        raise DamagedCommitError(f"{redact(folder.url)}/{COMMIT} is damaged: it names no parts")
    if state.pop("digest", None) not in (None, digest(state)):  # earlier versions wrote none
        raise DamagedCommitError(f"{redact(folder.url)}/{COMMIT} is damaged: it doesn't have its checksum")
    return state


def part_file(part: str) -> str:
    """The file of a part's tensors."""
    return f"{part}.safetensors"


def check_files(artifact: Folder, name: str, checksums: bool = True) -> None:
    """Raise DamagedCommitError unless the files of a checkpoint are as they were written: their sizes, by one listing,
    and, unless told otherwise, their checksums, for which all of them are read."""
    folder, parts = artifact / COMMITS / name, read_commit(artifact, name)["parts"]
    sizes = folder.sizes()
    for part, written in parts.items():
        file, where = part_file(part), f"{redact(folder.url)}/{part_file(part)}"
        if file not in sizes:
            raise DamagedCommitError(f"{where} is missing")
        if sizes[file] != written["size"]:
            raise DamagedCommitError(f"{where} is damaged: {sizes[file]} bytes of {written['size']}")
        if checksums and checksum_of(folder, file) != written["crc32"]:
            raise DamagedCommitError(f"{where} is damaged: it doesn't have its checksum")


def resumable(artifact: Folder, checksums: bool = False) -> str | None:
    """Name of the newest checkpoint whose files are as they were written (see `check_files`), or None.

    This is where it is decided at which checkpoint a run resumes. Damaged checkpoints are set aside, with a warning;
    ValueError if another version of raymae has written the newest one.
    """
    for name in reversed(complete(artifact)):
        try:
            check_files(artifact, name, checksums)
        except DamagedCommitError as error:
            set_aside(artifact, name, str(error))
        else:
            return name
    return None


def set_aside(artifact: Folder, name: str, reason: str) -> None:
    """Mark a checkpoint as damaged: runs resume from the one before it."""
    log.warning("%s; training resumes from an earlier checkpoint", reason)
    folder = artifact / COMMITS / name
    folder.write_json(SET_ASIDE, {"reason": reason})
    folder.remove(COMMIT)
