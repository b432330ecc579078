"""Results in parts, each a Parquet file that a Ray Data actor writes, whole or not at all.

Parts that exist are not computed again: a job that was killed resumes with the missing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data

from raymae.cluster.errors import unwrap_errors
from raymae.config import redact
from raymae.storage.folder import Folder

SETTINGS, DONE = "_settings.json", "_done.json"
"""Parquet readers skip names with an underscore when they read the folder as a data set."""


class Maker(Protocol):
    """Computes parts, one after the other; built on the worker."""

    def __call__(self, work: dict[str, Any]) -> pa.Table:
        """Compute the content of a part."""
        ...


@dataclass(frozen=True)
class Part:
    """A part to compute: its file, its share of the progress, and the input of its maker."""

    name: str
    size: int
    work: dict[str, Any]


class WriteParts:
    """A Ray Data actor that writes parts.

    A part may exist already: if an actor dies after writing it, Ray gives the part to another actor.
    """

    def __init__(self, folder: Folder, make: Callable[..., Maker], arguments: Sequence[Any]) -> None:
        self.folder, self.make = folder, make(*arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        parts = batch.to_pylist()
        for part in parts:
            if not self.folder.exists(part["name"]):
                self.folder.write_table(part["name"], self.make(part["work"]))
        return pa.table({"size": [part["size"] for part in parts]})


def write_parts(
    parts: Sequence[Part],
    folder: Folder,
    make: Callable[..., Maker],
    arguments: Sequence[Any],
    pool: dict[str, Any],
    progress: Callable[[int], Any],
) -> None:
    """Write parts with the actors of a `pool` (arguments of map_batches)."""
    # not from_arrow: its tasks ask for a CPU, and the actors may have taken all of them
    blocks = [pa.Table.from_pylist([vars(part)]) for part in parts]
    done = ray.data.from_blocks(blocks).map_batches(
        WriteParts, batch_size=None, batch_format="pyarrow", fn_constructor_args=(folder, make, arguments), **pool
    )
    for block in unwrap_errors(done.iter_batches(batch_size=None)):
        progress(int(block["size"].sum()))


def part_name(start: int) -> str:
    """The file of the part whose rows start at row `start`."""
    return f"part-{start:09d}.parquet"


def claim(output: Folder, settings: dict[str, Any], option: str, what: str) -> None:
    """Write a folder's settings; ValueError if it holds something else."""
    if output.exists(SETTINGS):
        if output.read_json(SETTINGS) != settings:
            raise ValueError(
                f"{option} {redact(output.url)} holds {what} of other settings or clips; choose a new folder"
            )
    elif output.names():
        raise ValueError(f"{option} {redact(output.url)} is not empty; choose a new folder")
    output.write_json(SETTINGS, settings)
