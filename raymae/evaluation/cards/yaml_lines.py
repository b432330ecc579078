"""YAML of plain values, written without a library: PyYAML can also run what it reads, and is not imported here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

PLAIN = re.compile(r"[A-Za-z][\w-]*", re.ASCII)
MEANT_OTHERWISE = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""Words that are no text in YAML 1.1."""
NOT_PRINTED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""Characters that JSON may hold and YAML may not."""


def yaml_lines(value: Any, indent: int = 0) -> Iterator[str]:
    """The lines of dicts and lists of text and numbers; keys are plain words, numbers have six places."""
    pad = " " * indent
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                yield f"{pad}{key}:"
                yield from yaml_lines(item, indent + 2)
            else:
                yield f"{pad}{key}: {scalar(item)}"
    else:
        for item in value:
            if isinstance(item, dict | list):
                first, *others = yaml_lines(item, indent + 2)
                yield f"{pad}- {first.lstrip()}"
                yield from others
            else:
                yield f"{pad}- {scalar(item)}"


def scalar(value: str | int | float) -> str:
    """A text or a number."""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int) or (PLAIN.fullmatch(value) and value.lower() not in MEANT_OTHERWISE):
        return str(value)
    quoted = json.dumps(value, ensure_ascii=False)
    return NOT_PRINTED.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
