"""Which symbolic links a folder's listing follows: those that stay in a root that the user named, or all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from raymae.config import DataConfig

FOLLOW = "--data.follow-links"
WITHIN, OUT = "links to folders within it", f"links to folders out of it ({FOLLOW} follows them)"


@dataclass(frozen=True, kw_only=True)
class Links:
    """The links to follow, beside those that stay in the folder that is listed."""

    follow_all: bool = False
    roots: tuple[str, ...] = ()
    """Local folders that the user named."""

    @classmethod
    def of(cls, config: DataConfig, *inputs: str) -> Links:
        """The links that a run follows: `inputs` are further paths that the user named."""
        pools = (pool.partition(":")[2] for pool in config.pool_datasets)
        named = [config.root, *config.tables, *config.pool_tables, *pools, *inputs]
        local = (os.path.expanduser(name) for name in named if name and "://" not in name)
        folders = {name if os.path.isdir(name) else os.path.dirname(os.path.abspath(name)) for name in local}
        return cls(follow_all=config.follow_links, roots=tuple(sorted(map(os.path.realpath, folders))))

    def allow(self, path: str) -> bool:
        """Whether a link to a resolved path is followed."""
        return self.follow_all or any(inside(root, path) for root in self.roots)


OWN = Links()
"""Only those that stay in the folder."""


def inside(root: str, path: str) -> bool:
    """Whether a path is a folder or below it; both resolved."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def walk(top: str, links: Links, left_out: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `top`, itself included, and the names of its files; no folder is visited twice.

    Links to folders that are not followed are counted in `left_out`: those within `top` lead to what is listed anyway.
    """
    root = os.path.realpath(top)
    visited = set()
    for current, folders, files in os.walk(top, followlinks=True):
        here = os.path.realpath(current)
        if here in visited:
            left_out[WITHIN] += os.path.islink(current)
            folders.clear()
            continue
        visited.add(here)
        for name in sorted(folders):
            path = os.path.join(current, name)
            if os.path.islink(path) and (kind := _unfollowed(root, os.path.realpath(path), links)):
                left_out[kind] += 1
                folders.remove(name)
        folders.sort()
        yield current, files


def _unfollowed(root: str, target: str, links: Links) -> str | None:
    """Why a link to a folder isn't followed, or None; one to a folder around the root would lead back to it."""
    if inside(root, target) or inside(target, root):
        return WITHIN
    return None if links.allow(target) else OUT
