"""Access to the fields of a configuration, with their declared types, by dotted path ("model.mask_ratio")."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from raymae.config.values import nearest, require

PARTS = "+"
"""Separator, in text, of the parts of a value."""
NONE = ("none", "null")


@cache
def hints_of(section: type) -> dict[str, Any]:
    """The declared types of a section's fields."""
    return get_type_hints(section)


def field_type(root: type, path: str) -> Any:
    """The declared type of the field at `path`; ValueError lists the valid names where there is no such field."""
    section, start, hint = root, "", root
    for part in path.split("."):
        require(is_dataclass(hint), f"unknown setting {path}: {start.rstrip('.')} has no fields of its own")
        here = ", ".join(f"{start}{item.name}" for item in fields(section))
        hints = hints_of(section)
        hint_at = nearest(f"{start}{part}", [f"{start}{name}" for name in difflib.get_close_matches(part, hints)])
        require(part in hints, f"unknown setting {path}{hint_at}; valid here: {here}")
        hint = hints[part]
        section, start = hint if is_dataclass(hint) else section, f"{start}{part}."  # type: ignore[assignment]
    inner = ", ".join(f"{path}.{item.name}" for item in fields(section))
    require(not is_dataclass(hint), f"{path} is a section, not a setting; valid here: {inner}")
    return hint


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The types that a declared type allows: several for a union."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@cache
def adapter(hint: Any) -> Any:
    """The pydantic adapter that validates values of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def typed(root: type, path: str, value: Any) -> Any:
    """`value` (from JSON, say) as the type of the field at `path`; ValueError says what it should have been."""
    from pydantic import ValidationError  # slow to import, and most commands don't need it

    hint = field_type(root, path)
    try:
        return adapter(hint).validate_python(value)
    except ValidationError as error:
        reasons = " or ".join(dict.fromkeys(one["msg"] for one in error.errors()))
        raise ValueError(f"{path} = {value!r}: {reasons[:1].lower()}{reasons[1:]}") from None


def from_text(root: type, path: str, text: str) -> Any:
    """The value of the field at `path` from text: None as a word, several parts joined by +."""
    allowed = choices_of(field_type(root, path))
    if type(None) in allowed and text.lower() in NONE:
        return None
    tuples = [one for one in allowed if get_origin(one) is tuple]
    parts: str | list[str] = (text.split(PARTS) if text else []) if tuples else text
    lengths = [len(get_args(one)) for one in tuples if Ellipsis not in get_args(one)]
    if lengths and len(lengths) == len(tuples) and len(parts) not in lengths:
        raise ValueError(f"{path} = {text!r}: should be {lengths[0]} values joined by {PARTS}, as in 16{PARTS}16")
    return typed(root, path, parts)


def to_text(value: Any) -> str:
    """A value as the text that `from_text` reads."""
    return PARTS.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def changed(section: Any, values: Mapping[str, Any]) -> Any:
    """A copy of a section with other values at some paths; raises what its checks raise."""
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        first, _, rest = path.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    return replace(section, **own, **{name: changed(getattr(section, name), some) for name, some in inner.items()})


def leaves(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Values by path from nested sections (of `to_dict`, or of a file that may also name paths)."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= leaves(value, f"{start}{name}.") if isinstance(value, dict) and value else {f"{start}{name}": value}
    return found


def differences(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """By path, the values of `values` that `others` doesn't have; both as `to_dict` writes a section."""
    known = leaves(others)
    return {path: value for path, value in leaves(values).items() if path not in known or known[path] != value}
