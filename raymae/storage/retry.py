"""What a storage refuses for a moment is tried again; a full one is named.

Which errors pass by themselves is a list: throttling, time-outs, lost connections, a network file system's bad moment.
What is missing, forbidden or full is none of them.
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

PATIENCE_SECONDS = 120.0
"""How long one operation is tried again; far less than the watchdog waits for a step."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
"""Seconds between tries, twice as many after each; less up to a half by chance, so that workers don't come at once."""
READ_SECONDS = 10.0
"""The same for a recording, of which there are more."""
PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # "slow down", as s3fs passes it on
    errno.EIO,  # of a network file system, or an answer that s3fs has no name for
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTUNREACH,
}
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
PASSING_NAMES = {  # of aiohttp, botocore and azure-core, of which none has to be installed
    "ServerDisconnectedError",
    "ClientPayloadError",
    "EndpointConnectionError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ServiceRequestError",
    "ServiceResponseError",
}
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class StorageFullError(OSError):
    """There is no room left where something has to be written."""


def passes(error: BaseException) -> bool:
    """Whether what a storage raised may be over in a moment."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING_ERRNOS
    status = next((getattr(error, name) for name in ("status", "code", "status_code") if hasattr(error, name)), None)
    return str(status) in map(str, PASSING_STATUS) or any(one.__name__ in PASSING_NAMES for one in type(error).__mro__)


def patiently(call: Callable[[], Found], what: str, seconds: float | None = None) -> Found:
    """What `call` returns; while it fails with what passes, it is called again for `seconds`, else `PATIENCE_SECONDS`.

    `call` has to be such that doing it twice does no harm. The log names `what` when the problem begins and ends.
    """
    began, delay = None, FIRST_DELAY
    while True:
        try:
            found = call()
        except Exception as error:  # each file system has exceptions of its own
            now = time.monotonic()
            if not passes(error) or now - (began or now) >= (PATIENCE_SECONDS if seconds is None else seconds):
                raise
            if began is None:
                began = now
                log.warning("%s fails for now (%s), trying again", what, type(error).__name__)
            time.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LONGEST_DELAY)
        else:
            if began is not None:
                log.info("%s works again after %.0f s", what, time.monotonic() - began)
            return found


class PatientFile(io.RawIOBase):
    """A file for reading which is opened again, where it was, when a read fails with what passes.

    Not buffered: file systems that need it read ahead themselves.
    """

    def __init__(self, reopen: Callable[[], BinaryIO], what: str) -> None:
        self._reopen, self._what = reopen, what
        self._place = 0
        self._file: BinaryIO | None = patiently(reopen, what)

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def seekable(self) -> bool:
        """Any place can be read."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._place = self._do(lambda file: file.seek(offset, whence))
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, fewer only at the end; all without a size."""
        found: bytes = self._do(lambda file: file.read(-1 if size is None else size))
        self._place += len(found)
        return found

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes."""
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _do(self, act: Callable[[BinaryIO], Any]) -> Any:
        def once() -> Any:
            if self._file is None:
                self._file = self._reopen()
            try:
                self._file.seek(self._place)
                return act(self._file)
            except Exception:
                self._file = None
                raise

        return patiently(once, self._what)
