"""Refuse tables whose columns are more than plain numbers, text and lists of them."""

from __future__ import annotations

import pyarrow as pa


def check_plain(schema: pa.Schema, name: str) -> None:
    """Raise ValueError if a column has an Arrow extension type: Ray's unpickle Python objects when they are read."""
    extended = [field.name for field in schema if _is_extension(field.type)]
    if extended:
        raise ValueError(f"{name}: the column {extended[0]} has an extension type, not plain numbers or text")


def _is_extension(kind: pa.DataType) -> bool:
    fields = (kind.field(place).type for place in range(kind.num_fields))
    return isinstance(kind, pa.BaseExtensionType) or any(map(_is_extension, fields))
