"""Checks that all sections share, and conversion of sections to and from plain values."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_share(name: str, value: float) -> None:
    require(0 <= value < 1, f"{name} = {value} must lie in [0, 1)")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name} = {value!r} must be one of {', '.join(choices)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint " (did you mean …?)" for a misspelt name; empty where none of the known ones is like it."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def require_finite(section: Any) -> None:
    """ValueError, naming the field by its path, for a number in `section` or below it that is NaN or infinite."""
    for path, value in numbers(section):
        require(math.isfinite(value), f"{path} = {value} must be a finite number")


def numbers(section: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Path and value of every float in a section and those below it."""
    for item in fields(section):
        value, name = getattr(section, item.name), f"{path}{item.name}"
        if is_dataclass(value):
            yield from numbers(value, f"{name}.")
        else:
            several = value if isinstance(value, tuple) else (value,)
            yield from ((name, one) for one in several if isinstance(one, float))


def redact(text: str) -> str:
    """`text` with the credentials of every URI in it replaced by `***`."""
    # user:password@, where a password may hold @ and /; then a bare token@
    text = re.sub(r"(\w[\w+.-]*://)[^\s/@:]*:\S*@", r"\1***@", text)
    text = re.sub(r"(\w[\w+.-]*://)[^/@\s]+@", r"\1***@", text)
    names = "secret|token|key|passw|signature|credential|^sig$"  # also of presigned and shared URLs
    return re.sub(
        r"([?&;])([\w.%-]+)=([^&;\s'\"]+)",
        lambda found: f"{found[1]}{found[2]}=***" if re.search(f"(?i){names}", found[2]) else found[0],
        text,
    )


def to_dict(value: Any, *, secret: bool = False) -> Any:
    """A section as plain dicts, lists and scalars; credentials are redacted unless `secret`."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: to_dict(item, secret=secret) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item, secret=secret) for item in value]
    return redact(value) if isinstance(value, str) and not secret else value


def from_dict(section: type, values: dict[str, Any], path: str = "") -> Any:
    """The section that `to_dict` wrote; raises ValueError for unknown keys."""
    known = {item.name: item for item in fields(section)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        hint = nearest(unknown[0], known)
        raise ValueError(f"unknown setting {path}{unknown[0]}{hint}; valid here: {', '.join(known)}")
    default = section()
    arguments = {}
    for name, value in values.items():
        inner = getattr(default, name)
        if is_dataclass(inner):
            value = from_dict(type(inner), value, f"{path}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return section(**arguments)
