"""Retries of storage operations that fail temporarily, and the error of a full storage.

Transient errors are those of a list: throttling, time-outs, lost connections, hiccups of a network file system. A file
that is missing or forbidden and a full disk are not transient.
"""

from __future__ import annotations

import errno
import io
import logging
import random
import socket
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

log = logging.getLogger(__name__)

Found = TypeVar("Found")

RETRY_SECONDS = 120.0
"""How long one operation is retried; far less than the watchdog's limit for a step."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
"""Seconds between tries, doubled after each; shortened by up to half at random, so that workers don't coincide."""
READ_SECONDS = 10.0
"""The limit for one recording, shorter because there are many."""
TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # "slow down", as s3fs reports it
    errno.EIO,  # of a network file system, or an answer that s3fs has no errno for
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTUNREACH,
}
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRANSIENT_NAMES = {  # of aiohttp, botocore and azure-core, none of which has to be installed
    "ServerDisconnectedError",
    "ClientPayloadError",
    "EndpointConnectionError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ServiceRequestError",
    "ServiceResponseError",
}
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMSGSIZE)  # the last one: too large for s3fs


class StorageError(OSError):
    """An error of a storage that a user can mend, in a line."""


class StorageFullError(StorageError):
    """No room is left in the storage."""


def is_transient(error: BaseException) -> bool:
    """Whether a storage's error may be over in a moment."""
    if is_full(error):
        return False
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    status = next((getattr(error, name) for name in ("status", "code", "status_code") if hasattr(error, name)), None)
    names = (kind.__name__ for kind in type(error).__mro__)
    return str(status) in map(str, TRANSIENT_STATUS) or any(name in TRANSIENT_NAMES for name in names)


def is_full(error: BaseException) -> bool:
    """Whether a storage has no room, or takes no file of this size."""
    answer = getattr(error.__cause__, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return (
        getattr(error, "errno", None) in FULL_ERRNOS
        or str(status or getattr(error, "code", getattr(error, "status", ""))) == "507"
        or any(word in code for word in ("Quota", "StorageFull", "EntityTooLarge"))
    )


def is_conflict(error: BaseException) -> bool:
    """Whether a storage refused to make a file because there is one (412 is what object stores answer)."""
    return isinstance(error, FileExistsError) or str(getattr(error, "code", getattr(error, "status", ""))) == "412"


def with_retries(call: Callable[[], Found], what: str, seconds: float | None = None) -> Found:
    """Return the result of `call`, repeated while it fails with transient errors for up to `seconds` (`RETRY_SECONDS`).

    `call` has to be safe to repeat. The log names `what` when the problem begins and ends.
    """
    began, delay = None, FIRST_DELAY
    while True:
        try:
            found = call()
        except Exception as error:  # each file system has its own exceptions
            now = time.monotonic()
            if not is_transient(error) or now - (began or now) >= (RETRY_SECONDS if seconds is None else seconds):
                raise
            if began is None:
                began = now
                log.warning("%s fails temporarily (%s), retrying", what, type(error).__name__)
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LONGEST_DELAY)
        else:
            if began is not None:
                log.info("%s works again after %.0f s", what, time.monotonic() - began)
            return found


class RetryingFile(io.RawIOBase):
    """A file for reading that is reopened at the same position when a read fails with a transient error.

    Unbuffered: file systems that need read-ahead do it themselves.
    """

    def __init__(self, reopen: Callable[[], BinaryIO], retried: Callable[[Callable[[], Any]], Any]) -> None:
        self._reopen, self._retried = reopen, retried
        self._position = 0
        self._file: BinaryIO | None = retried(reopen)

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._position = self._do(lambda file: file.seek(offset, whence))
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read the next `size` bytes, fewer only at the end; all that are left without a size."""
        found: bytes = self._do(lambda file: file.read(-1 if size is None else size))
        self._position += len(found)
        return found

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as bytes are left."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _do(self, operation: Callable[[BinaryIO], Any]) -> Any:
        def once() -> Any:
            if self._file is None:
                self._file = self._reopen()
            try:
                self._file.seek(self._position)
                return operation(self._file)
            except Exception:
                self._file = None
                raise

        return self._retried(once)
