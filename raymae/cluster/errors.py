"""Errors of a worker that its user can mend, told apart from mistakes of ours.

Ray hands on what a worker raised as text, in an error of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ray.exceptions import RayError

Item = TypeVar("Item")

MENDABLE = re.compile(r"(?m)^.*\b(?:ValueError|ConnectionError|StorageFullError): (.+)$")


def user_error(texts: Iterable[str]) -> ValueError | None:
    """What a user can mend (a damaged shard, a storage that can't be reached, a full disk), from what Ray says of some
    errors; None where it is nothing of that kind."""
    found = [line for text in texts for line in MENDABLE.findall(text)]
    return ValueError(found[-1]) if found else None


def plainly(items: Iterable[Item]) -> Iterator[Item]:
    """What Ray Data's workers give; an error of theirs that a user can mend is a ValueError with its own words."""
    try:
        yield from items
    except RayError as error:
        raise user_error([str(error)]) or error from None
