"""Turn errors of workers that a user can fix back into exceptions with their own message.

Ray wraps what a worker raised, as text, in an error of its own. Other errors are left as they are: bugs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ray.exceptions import RayError

Item = TypeVar("Item")

USER_ERROR = re.compile(r"(?m)^.*\b(?:ValueError|ConnectionError|Storage\w*Error|NoBucketError): (.+)$")


def user_error(texts: Iterable[str]) -> ValueError | None:
    """The error that a user can fix (a damaged shard, an unreachable storage, a full disk) in the texts of Ray's
    errors; None if there is none."""
    found = [line for text in texts for line in USER_ERROR.findall(text)]
    return ValueError(found[-1]) if found else None


def unwrap_errors(items: Iterable[Item]) -> Iterator[Item]:
    """Iterate over the output of Ray Data's workers; a worker's error that a user can fix becomes a ValueError."""
    try:
        yield from items
    except RayError as error:
        raise user_error([str(error)]) or error from None
