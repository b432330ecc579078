"""Find files whose stored name is the same text in another Unicode form, as macOS and zip archives write them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from unicodedata import normalize

import pyarrow as pa
import pyarrow.compute as pc


def same_names(wanted: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """By wanted name the stored one that is equal up to its Unicode form; those without one are left out."""
    forms = {name: normalize("NFC", name) for name in wanted if not name.isascii()}
    if not forms:
        return {}
    known = {normalize("NFC", name): name for name in sorted(stored, reverse=True) if not name.isascii()}
    return {name: known[form] for name, form in forms.items() if form in known}


def with_other_names(wanted: pa.Array, found: pa.Array, stored: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """Places in `stored` (m,) of `wanted` (n,) where `found` (n,) has none, by names that are equal up to their form.

    Returns the places (n,), null where there is no such name either, and the stored name by row that was found so.
    """
    lost = {row: wanted[row].as_py() for row in pc.indices_nonzero(pc.is_null(found)).to_pylist()}
    names = same_names(filter(None, lost.values()), [] if _all_ascii(lost.values()) else stored.to_pylist())
    others = {row: names[name] for row, name in lost.items() if name in names}
    if not others:
        return found, {}
    named = pa.array([others.get(row) for row in range(len(wanted))], pa.string())
    return pc.coalesce(found, pc.index_in(named, value_set=stored, skip_nulls=True)), others


def _all_ascii(names: Iterable[str | None]) -> bool:
    return all(name is None or name.isascii() for name in names)


def other_paths(root: str, paths: Iterable[str]) -> dict[str, str]:
    """By local path below `root` that doesn't exist the one that does, with names in another Unicode form."""

    @cache
    def listed(folder: str) -> tuple[set[str], dict[str, str]]:
        try:
            names = os.listdir(folder)
        except OSError:
            names = []
        forms = {normalize("NFC", name): name for name in sorted(names, reverse=True) if not name.isascii()}
        return set(names), forms

    def stored(path: str) -> str | None:
        current = root
        for part in os.path.relpath(path, root).split("/"):
            names, forms = listed(current)
            name = part if part in names else forms.get(normalize("NFC", part))
            if name is None:
                return None
            current = f"{current.rstrip('/')}/{name}"
        return current

    known = {path: stored(path) for path in paths if not path.isascii()}
    return {path: found for path, found in known.items() if found is not None and found != path}
