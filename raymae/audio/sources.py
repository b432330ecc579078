"""Where a clip's bytes lie: in a file, at a URL, in a tar shard or in a column of a Parquet file.

    /data/a.wav                            a file
    s3://bucket/a.wav                      an object at any URL that fsspec knows
    tar://a.wav::/data/shard.tar           a member of a tar (WebDataset); fsspec's own chained address
    parquet://audio/17::/data/t.parquet    a row, counted from 1, of a column of encoded files: binary, or
                                           the struct {bytes, path} of Hugging Face's data sets

A tar is indexed once in each process, its members are read by position; the rows of a Parquet file are read forwards,
a few at a time. Nothing is extracted to disk, no link in a tar is followed, no size in a header is taken at its word.
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
    _touch,
    find_container,
    open_member,
    open_row,
    parquet_contents,
    read_patiently,
    reason_of,
    tar_contents,
)
from raymae.audio.decode import AudioError, UnreachableError
from raymae.config import redact
from raymae.storage.retry import passes


def open_clip(path: str) -> str | bytes | BinaryIO:
    """What `raymae.audio.decode.load` reads the clip at an address from; AudioError where there is nothing to read.

    A storage is asked again where it fails for now; UnreachableError where it goes on failing.
    """
    try:
        if packed := re.match(PACKED, path):
            kind, _, name = packed["inner"].partition("://")
            container = (find_container if "://" in packed["outer"] else Container.open)(packed["outer"])
            return (open_member if kind == "tar" else open_row)(container, name)
        if "://" not in path:
            _touch(path)
            return path
        fs, name = url_to_fs(path)
        content = bytes(read_patiently(lambda: fs.cat_file(name, start=0, end=WHOLE + 1), path))
        return content if len(content) <= WHOLE else find_container(path).part(0, find_container(path).size)
    except AudioError:
        raise
    except Exception as error:  # file systems and archives bring their own
        raise (UnreachableError if passes(error) else AudioError)(reason_of(error)) from None


def look_into(kind: str, url: str) -> tuple[Contents, float]:
    """What a container (kind tar or parquet) holds and when it was changed; the reason where it can't be read.

    UnreachableError where its storage fails for now.
    """
    try:
        container = Container.open(url)
        return (tar_contents if kind == "tar" else parquet_contents)(container), container.mtime
    except Exception as error:  # those of the file system
        if passes(error):
            raise UnreachableError(f"{redact(url)} can't be reached: {reason_of(error)}") from None
        return EMPTY._replace(problem=reason_of(error)), 0.0
