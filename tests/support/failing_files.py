"""An in-memory file system whose operations fail at first, like an object store that throttles."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

FAULTS: list[Callable[[], Exception]] = [
    lambda: OSError(errno.EBUSY, "Please reduce your request rate"),
    lambda: TimeoutError("no answer"),
    lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
]


class FailingFiles(MemoryFileSystem):
    """`failing://`: the first `failures` calls of every operation on every path fail, each time with another error."""

    protocol = "failing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[int] = 0
    calls: ClassVar[Counter[tuple[str, str]]] = Counter()
    fault: ClassVar[Callable[[], Exception] | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("failing://", "memory://")))

    def _fail(self, operation: str, path: str) -> None:
        self.calls[operation, path] += 1
        turn = self.calls[operation, path]
        if turn <= self.failures:
            raise (type(self).fault or FAULTS[turn % len(FAULTS)])()

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Read."""
        self._fail("read", path)
        return super().cat_file(path, *args, **kwargs)

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> Any:
        """Write."""
        self._fail("write", path)
        return super().pipe_file(path, value, *args, **kwargs)

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """List."""
        self._fail("list", path)
        return super().ls(path, *args, **kwargs)

    def rm(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Remove."""
        self._fail("remove", path)
        return super().rm(path, *args, **kwargs)

    def open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """Open; reads of the opened file fail at first too."""
        self._fail("open", path)
        file = super().open(path, mode, *args, **kwargs)
        return FailingFile(file, lambda: self._fail("part", path)) if mode == "rb" else file


class FailingFile:
    """A file whose reads fail at first."""

    def __init__(self, file: Any, fail: Callable[[], None]) -> None:
        self.file, self.fail = file, fail

    def read(self, size: int = -1) -> bytes:
        """Read a part; a failed read has moved the position, as it may."""
        content = bytes(self.file.read(size))
        self.fail()
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


fsspec.register_implementation("failing", FailingFiles)
