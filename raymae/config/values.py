"""Checks that all sections share, and conversion of sections to and from plain values."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, is_dataclass
from typing import Any


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_share(name: str, value: float) -> None:
    require(0 <= value < 1, f"{name} = {value} must lie in [0, 1)")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name} = {value!r} must be one of {', '.join(choices)}")


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
    require(not unknown, f"unknown setting {path}{unknown[0] if unknown else ''}; valid here: {', '.join(known)}")
    default = section()
    arguments = {}
    for name, value in values.items():
        inner = getattr(default, name)
        if is_dataclass(inner):
            value = from_dict(type(inner), value, f"{path}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return section(**arguments)
