"""Recordings that users give: paths, bytes of encoded files, and waveforms with their sample rates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

EXPECTED = "the path of an audio file, its bytes, a pair (waveform, sample_rate) or {'waveform': …, 'sample_rate': …}"


def source_of(value: Any, row: int, hint: str = "") -> Any:
    """The Predictor's input for a path (text), a file's bytes, a pair (waveform, sample_rate) or a mapping with these
    two; for anything else a ValueError names the row and ends with `hint`."""
    if isinstance(value, Mapping) and set(value) == {"waveform", "sample_rate"}:
        value = value["waveform"], value["sample_rate"]
    if isinstance(value, tuple | list) and len(value) == 2 and np.ndim(value[0]) and is_rate(value[1]):
        return np.asarray(value[0]), int(value[1])
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    bare = isinstance(value, np.ndarray | list)
    found = "a waveform without its sample rate" if bare else f"{type(value).__name__} {str(value)[:40]!r}"
    raise ValueError(f"row {row} holds {found}; expected {EXPECTED}{hint}")


def sources_of(given: Any) -> list[Any]:
    """The Predictor's inputs of one recording, or of several in a list, an array, a pandas.Series, …"""
    single = isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Mapping)
    pair = isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) and is_rate(given[1])
    if single or pair:
        return [source_of(given, 0)]
    numbers = hasattr(given, "__array__") and np.asarray(given).dtype.kind in "fiu"
    if numbers or not isinstance(given, Iterable):
        return [source_of(np.asarray(given) if numbers else given, 0)]  # refused: a waveform without its sample rate
    return [source_of(value, row) for row, value in enumerate(given)]


def is_rate(value: Any) -> bool:
    """Whether a value is a whole number, as sample rates are."""
    return isinstance(value, int | float | np.integer | np.floating) and float(value).is_integer()
