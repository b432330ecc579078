"""What object stores need beyond fsspec: options that the user hasn't set, and other ways to create and to remove files
where a store that speaks S3's language doesn't know all of it (OpenStack Swift, older ones of other makers)."""

from __future__ import annotations

import errno
import logging
import time
from functools import cache
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.config import conf

log = logging.getLogger(__name__)

CONNECTIONS = 64
"""Connections to S3 at once. botocore's own limit of 10 holds a training worker to 1,100 clips of 10 s a second, at
90 MB/s of a connection that answers after 25 ms."""
SETTLE_SECONDS = 3.0
"""How long a process may take to write a file after it has seen that there is none, in a store without conditional
requests; one that takes longer may write over another's."""
S3 = ("s3", "s3a")


def options(url: str) -> dict[str, Any]:
    """Keyword arguments for the file system of a URL; what fsspec's configuration says takes precedence."""
    protocol = url.partition("://")[0]
    if protocol not in S3:
        return {}
    given = conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": CONNECTIONS, **given}}


def create(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a small file unless there is one, by a conditional request; otherwise an error that `is_conflict` knows.

    A store that refuses conditional requests is asked whether there is a file; of several processes that write it in
    the same moment the last one has created it, which all find out by reading it `SETTLE_SECONDS` later.
    """
    only_new: dict[str, Any] = {"overwrite": False} if "abfs" in fs.protocol else {"mode": "create"}
    try:
        fs.pipe_file(path, content, **only_new)
        return
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    _warn_of_no_conditions(path.partition("/")[0])
    if fs.exists(path):
        raise FileExistsError(path)
    fs.pipe_file(path, content)
    time.sleep(SETTLE_SECONDS)
    if not fs.exists(path) or fs.cat_file(path) != content:
        raise FileExistsError(path)


@cache
def _warn_of_no_conditions(bucket: str) -> None:
    log.warning(
        "the storage of %s has no conditional requests: whether another job makes a stage, too, is known after %.0f s; "
        "if a file takes longer to write, both may make it",
        bucket,
        SETTLE_SECONDS,
    )


def remove(fs: AbstractFileSystem, path: str) -> None:
    """Remove a file, or a folder with its content: of S3 in one request, if the store takes botocore's.

    Older stores want that request to have a header (Content-MD5) that botocore no longer sends.
    """
    try:
        fs.rm(path, recursive=True)
    except OSError as error:
        if error.errno != errno.EINVAL or not {*S3}.intersection(fs.protocol):
            raise
        for file in fs.find(path):
            fs.rm_file(file)
