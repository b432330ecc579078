"""What there is in place of a folder that isn't there or isn't what was expected: the ends of messages."""

from __future__ import annotations

from pathlib import Path

from raymae.config import nearest, redact
from raymae.storage.folder import Folder

MOST = 8
"""Names in a message."""


def some(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:MOST]) + (", …" if len(names) > MOST else "")


def what_is_there(folder: Folder) -> str:
    """What a folder holds or, where there is none, what is beside it, and which of that may have been meant."""
    try:
        if names := folder.names():
            return f"; it holds {some(names)}"
        if folder.exists():
            return "; it is empty" if not folder.is_local or Path(folder.path()).is_dir() else "; it is a file"
        parent, _, name = folder.url.rstrip("/").rpartition("/")
        names = Folder(parent or "/").names()
    except (OSError, ImportError, ValueError):  # the message has its own reason
        return ""
    holds = f"; {redact(parent or '/')} holds {some(names)}" if names else ""
    return f"; there is no such folder{nearest(name, names)}{holds}"


def beside(url: str, name: str) -> str:
    """The folders beside a local one that hold a file or folder of a name; empty where there is none."""
    found = sorted(str(path.parent) for path in Path(url).parent.glob(f"*/{name}")) if "://" not in url else []
    return f"; {some(found)} has one" if len(found) == 1 else f"; {some(found)} have one" if found else ""
