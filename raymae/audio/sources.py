"""Addresses of clips: files, URLs, members of tar shards and rows of Parquet files.

    /data/a.wav                            a file
    s3://bucket/a.wav                      an object at any URL that fsspec knows
    tar://a.wav::/data/shard.tar           a member of a tar (WebDataset), in fsspec's syntax of chained URLs
    parquet://audio/17::/data/t.parquet    a row, counted from 1, of a column of encoded files: binary, or
                                           the struct {bytes, path} of Hugging Face's data sets

A tar is indexed once per process and its members are read by position; the rows of a Parquet file are read forwards, a
few at a time. Nothing is extracted to disk, links in a tar are not followed, and sizes in headers are not trusted.
"""

from __future__ import annotations

import re
from typing import BinaryIO

from fsspec.core import url_to_fs

from raymae.audio.containers import (
    EMPTY,
    PACKED,
    WHOLE,
    Container,
    Contents,
    find_container,
    member_part,
    open_member,
    open_row,
    parquet_contents,
    read_first_byte,
    read_with_retries,
    reason_of,
    tar_contents,
)
from raymae.audio.errors import AudioError, UnreachableError
from raymae.config import redact
from raymae.storage.retry import is_transient

HEADER = 2**16
"""Bytes that are read at a time of a recording of which only the length is asked for."""


def open_clip(path: str) -> str | bytes | BinaryIO:
    """Open the clip at an address for `raymae.audio.decode.load`: a path, the encoded bytes or a file object.

    Raises AudioError if it can't be opened, and UnreachableError if its storage still fails after retries.
    """
    try:
        if packed := re.match(PACKED, path):
            kind, _, name = packed["inner"].partition("://")
            container = (find_container if "://" in packed["outer"] else Container.open)(packed["outer"])
            return (open_member if kind == "tar" else open_row)(container, name)
        if "://" not in path:
            read_first_byte(path)
            return path
        fs, name = url_to_fs(path)
        content = bytes(read_with_retries(lambda: fs.cat_file(name, start=0, end=WHOLE + 1), path))
        return content if len(content) <= WHOLE else find_container(path).part(0, find_container(path).size)
    except AudioError:
        raise
    except Exception as error:  # file systems and archives have their own exceptions
        raise (UnreachableError if is_transient(error) else AudioError)(reason_of(error)) from None


def open_in_parts(path: str) -> str | bytes | BinaryIO:
    """Open the clip at an address as `open_clip`, but read of it only what is asked for: its header, not its audio."""
    packed = re.match(PACKED, path)
    try:
        if packed and path.startswith("tar://"):
            return member_part(find_container(packed["outer"]), packed["inner"].partition("://")[2], HEADER)
        if "://" in path and not packed:
            return find_container(path).part(0, find_container(path).size, HEADER)
    except AudioError:
        raise
    except Exception as error:  # file systems and archives have their own exceptions
        raise (UnreachableError if is_transient(error) else AudioError)(reason_of(error)) from None
    return open_clip(path)


def look_into(kind: str, url: str) -> tuple[Contents, float]:
    """Contents and change time of a container (kind tar or parquet); `Contents.problem` says why it can't be read.

    Raises UnreachableError if its storage fails temporarily.
    """
    try:
        container = Container.open(url)
        return (tar_contents if kind == "tar" else parquet_contents)(container), container.mtime
    except Exception as error:  # of the file system
        if is_transient(error):
            raise UnreachableError(f"{redact(url)} can't be reached: {reason_of(error)}") from None
        return EMPTY._replace(problem=reason_of(error)), 0.0
