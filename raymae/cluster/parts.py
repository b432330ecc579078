"""Results that are made in parts, each a Parquet file that an actor of Ray Data writes, whole or not at all.

What stands is not made again: a job that was killed goes on with the parts that lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data

from raymae.cluster.errors import plainly
from raymae.config import redact
from raymae.storage.folder import Folder

SETTINGS, DONE = "_settings.json", "_done.json"
"""Names with an underscore are skipped by whoever reads the folder as a Parquet data set."""


class Maker(Protocol):
    """Makes parts, one after the other; built on the worker."""

    def __call__(self, work: dict[str, Any]) -> pa.Table:
        """The part's content."""
        ...


@dataclass(frozen=True)
class Part:
    """A part to be: its file, how much it counts for in the progress, and what its maker has to know."""

    name: str
    size: int
    work: dict[str, Any]


class WriteParts:
    """A Ray Data actor that writes the parts that it is given.

    One that stands was written by an actor that died before it could say so: Ray gives its part to another.
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
    """Write parts with actors of a `pool` (arguments of map_batches)."""
    # not from_arrow: its tasks want a CPU, and the actors may have taken all of them
    blocks = [pa.Table.from_pylist([vars(part)]) for part in parts]
    done = ray.data.from_blocks(blocks).map_batches(
        WriteParts, batch_size=None, batch_format="pyarrow", fn_constructor_args=(folder, make, arguments), **pool
    )
    for block in plainly(done.iter_batches(batch_size=None)):
        progress(int(block["size"].sum()))


def part_name(start: int) -> str:
    """The file of a folder that holds the rows from row `start` on."""
    return f"part-{start:09d}.parquet"


def claim(output: Folder, settings: dict[str, Any], option: str, what: str) -> None:
    """Write down what a folder will hold; ValueError where it holds something else."""
    if output.exists(SETTINGS):
        if output.read_json(SETTINGS) != settings:
            raise ValueError(
                f"{option} {redact(output.url)} holds {what} of other settings or clips: name a new folder"
            )
    elif output.names():
        raise ValueError(f"{option} {redact(output.url)} is not empty: name a new folder")
    output.write_json(SETTINGS, settings)
