"""Read the body of a request, and extract the bytes of its audio file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import BytesHeaderParser

STALL_SECONDS = 10.0
MAX_PARTS = 16
MAX_HEADER = 8192
"""Largest header of a part, bytes."""


class TooLargeError(ValueError):
    """The body is larger than allowed."""


class UploadError(ValueError):
    """The body holds no file."""


class StalledError(TimeoutError):
    """Nothing more of the body comes."""


class FullError(Exception):
    """The bodies of all requests together take too much memory."""


class Uploads:
    """What the bodies of all requests take together, `most` bytes at most."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that counts more bytes of a request, until its end; FullError beyond the limit."""
        mine = 0

        def count(more: int) -> None:
            nonlocal mine
            if self.bytes + more > self.most:
                raise FullError("too many uploads at once: try again in a moment")
            mine, self.bytes = mine + more, self.bytes + more

        try:
            yield count
        finally:
            self.bytes -= mine


async def read_body(
    pieces: AsyncIterable[bytes], max_bytes: int, count: Callable[[int], None] = lambda more: None
) -> bytes:
    """The whole body, read up to `max_bytes` whatever its header says; `count` gets the size of each piece.

    Raises TooLargeError beyond, and StalledError if nothing comes for `STALL_SECONDS`.
    """
    held: list[bytes] = []
    size, waiting = 0, aiter(pieces)
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                piece = await anext(waiting)
        except StopAsyncIteration:
            return b"".join(held)
        except TimeoutError:
            raise StalledError(f"nothing of the upload came for {STALL_SECONDS:g} s") from None
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"the upload is larger than {max_bytes / 1e6:g} MB")
        count(len(piece))
        held.append(piece)


def file_of(body: bytes, content_type: str) -> bytes:
    """The audio file in a body: the body itself, or the first file of a multipart/form-data one.

    UploadError where there is none.
    """
    header = Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = header.get_boundary()
    if not boundary:
        raise UploadError("multipart/form-data without a boundary")
    mark = b"\r\n--" + boundary.encode("latin-1", "replace")
    place = 0 if body.startswith(mark[2:]) else body.find(mark) + 2
    for _ in range(MAX_PARTS):
        start = place + len(mark) - 2
        headers_end = body.find(b"\r\n\r\n", start, start + MAX_HEADER)
        if (place < 2 and not body.startswith(mark[2:])) or body.startswith(b"--", start) or headers_end < 0:
            break
        end = body.find(mark, headers_end + 2)
        if end < 0:
            raise UploadError("multipart/form-data ends within a part")
        headers = BytesHeaderParser().parsebytes(body[start:headers_end].lstrip())
        if headers.get_filename() is not None:
            return body[headers_end + 4 : end]
        place = end + 2
    raise UploadError("multipart/form-data without a file: curl -F file=@recording.wav")
